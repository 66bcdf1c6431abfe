# Locust with the load tests. Build it from the top of the repository:
#   docker build --file deploy/docker/load.Dockerfile --tag tiny-sd-load:0.1.0 .

FROM python:3.12.13-slim-trixie
LABEL org.opencontainers.image.title="tiny-sd-load" \
      org.opencontainers.image.description="Load tests of Tiny-SD on Triton" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
WORKDIR /opt/tiny-sd
ARG PIP_CONSTRAINT=/opt/tiny-sd/deploy/docker/constraints.txt
ARG PIP_BUILD_CONSTRAINT=/opt/tiny-sd/deploy/docker/constraints.txt
COPY deploy/docker/constraints.txt deploy/docker/
COPY client client
RUN pip install --no-cache-dir ./client locust==2.47.0
COPY load_tests load_tests
RUN useradd --uid 1000 --user-group --no-create-home locust \
    && install --directory --owner=1000 --group=1000 /reports
USER 1000:1000
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TINY_SD_LOAD_REPORT=/reports
EXPOSE 8089
ENTRYPOINT ["locust", "--locustfile", "load_tests/locustfile.py"]
