# Triton with the engine's libraries and the model repository. No weights: they are in the folder that TINY_SD_CHECKPOINT
# names, on a volume. Build it from the top of the repository:
#   docker build --file deploy/docker/triton.Dockerfile --tag tiny-sd-triton:0.1.0 .

# 26.06 is Ubuntu 24.04, whose Python 3.12 is the newest that the engine runs on; it has CUDA 13, as torch 2.13 has, so
# that one driver does for both; and it is later than 25.11, which mended how Triton reschedules requests.
FROM nvcr.io/nvidia/tritonserver:26.06-py3

LABEL org.opencontainers.image.title="tiny-sd-triton" \
      org.opencontainers.image.description="Tiny-SD on Triton Inference Server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"

USER 0:0
# Without pip of its own: Ubuntu keeps back what would install that, and the image's pip installs into other environments.
# Not into the system's Python, where some of the packages are Ubuntu's, which pip cannot replace.
RUN python3 -m venv --without-pip /opt/tiny-sd/venv
# Models find their packages where the first python3 on PATH does; a Triton that looks at PYTHONPATH finds the same.
ENV PATH=/opt/tiny-sd/venv/bin:$PATH \
    PYTHONPATH=/opt/tiny-sd/venv/lib/python3.12/site-packages \
    PYTHONDONTWRITEBYTECODE=1

# The libraries first, in a layer that changes to the code leave alone: it is some gigabytes.
WORKDIR /opt/tiny-sd
COPY deploy/docker/constraints.txt deploy/docker/requirements.py deploy/docker/
COPY pyproject.toml ./
COPY client/pyproject.toml client/
# huggingface_hub and psutil are what tools/checkpoint.py needs besides; setuptools builds our own packages below.
RUN python deploy/docker/requirements.py pyproject.toml client/pyproject.toml > requirements.txt \
    && /usr/bin/python3 -m pip --python venv/bin/python install --no-cache-dir --constraint deploy/docker/constraints.txt \
        --requirement requirements.txt huggingface_hub==2.4.0 psutil==7.2.2 setuptools==84.2.1

COPY engine engine
COPY client client
RUN /usr/bin/python3 -m pip --python venv/bin/python install --no-cache-dir --no-deps --no-build-isolation ./client .
COPY tools/checkpoint.py tools/
COPY tools/checkpoints tools/checkpoints
COPY tools/local_server tools/local_server
COPY deploy/docker/start-triton.sh deploy/docker/check-triton.sh deploy/docker/has-gpu.sh deploy/docker/
COPY model_repository model_repository

# A volume that is new takes over the folder's owner.
RUN install --directory --owner=1000 --group=1000 /checkpoints
# Triton's own user, triton-server; as a number, so that Kubernetes can see that it is not root.
USER 1000:1000
ENV TINY_SD_CHECKPOINT=/checkpoints/tiny-sd \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_VERBOSITY=error \
    OMP_WAIT_POLICY=PASSIVE
# HTTP, gRPC, metrics.
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=60s --timeout=60s --start-period=10m --start-interval=10s --retries=2 \
    CMD ["/opt/tiny-sd/deploy/docker/check-triton.sh"]
# After the base image's entrypoint, which looks at the driver and runs what it is given.
CMD ["/opt/tiny-sd/deploy/docker/start-triton.sh"]
