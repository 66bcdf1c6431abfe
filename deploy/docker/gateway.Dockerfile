# The REST gateway and its playground. Build it from the top of the repository:
#   docker build --file deploy/docker/gateway.Dockerfile --tag tiny-sd-gateway:0.1.0 .

FROM python:3.12.13-slim-trixie AS build
WORKDIR /source
# Named by environment, the constraints hold for what builds our packages, too; newer pips ask for the second name.
ARG PIP_CONSTRAINT=/source/constraints.txt
ARG PIP_BUILD_CONSTRAINT=/source/constraints.txt
COPY deploy/docker/constraints.txt ./
COPY client client
COPY gateway gateway
RUN python -m venv /opt/tiny-sd-gateway \
    && /opt/tiny-sd-gateway/bin/pip install --no-cache-dir ./client ./gateway

FROM python:3.12.13-slim-trixie
LABEL org.opencontainers.image.title="tiny-sd-gateway" \
      org.opencontainers.image.description="REST gateway and playground of Tiny-SD on Triton" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
# The folder is where SQLite is kept, if there is no other database.
RUN useradd --uid 1000 --user-group --no-create-home gateway \
    && install --directory --owner=1000 --group=1000 /var/lib/tiny-sd-gateway
COPY --from=build /opt/tiny-sd-gateway /opt/tiny-sd-gateway
COPY deploy/docker/start-gateway.sh /usr/local/bin/
USER 1000:1000
ENV PATH=/opt/tiny-sd-gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_DATA_HOME=/var/lib \
    TINY_SD_GATEWAY_LOG_FORMAT=json \
    OTEL_SERVICE_NAME=tiny-sd-gateway
EXPOSE 8080
# Alive is enough here: an orchestrator that restarts what is unhealthy must not do so because Triton or the database are
# away, as /readyz would have it.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --start-interval=2s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=5)"]
ENTRYPOINT ["start-gateway.sh"]
CMD ["run", "--host", "0.0.0.0", "--port", "8080"]
