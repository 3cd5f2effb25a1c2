# The VAE worker: decoding and image files. From the root: docker build -f deploy/docker/vae-worker.Dockerfile .
ARG PYTHON_IMAGE=python:3.11-slim
# sha256:..., to pin what that name stands for.
ARG PYTHON_DIGEST
FROM ${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS base

FROM base AS builder
WORKDIR /source
# Where packages come from, if not from pip's own default, and where torch may come from too.
ARG PIP_INDEX_URL
ARG TORCH_INDEX_URL
# What is installed: deploy/docker/pins/PINS.txt. "worker" has a CUDA build of torch. An image made so has never been run
# on a GPU. "worker-cpu" has a CPU build.
ARG PINS="worker"
COPY deploy/docker/install.sh deploy/docker/
COPY deploy/docker/pins deploy/docker/pins
RUN sh deploy/docker/install.sh /opt/synerdiff dependencies ${PINS}
COPY pyproject.toml README.md LICENSE ./
COPY synerdiff synerdiff
COPY services services
COPY synerdiff_cli synerdiff_cli
RUN sh deploy/docker/install.sh /opt/synerdiff project
RUN sh deploy/docker/install.sh /opt/synerdiff bytecode
RUN echo "synerdiff:x:10001:10001::/cache:/usr/sbin/nologin" >> /etc/passwd && echo "synerdiff:x:10001:" >> /etc/group \
    && mkdir -p /empty

FROM base
ARG PYTHON_IMAGE
ARG PYTHON_DIGEST
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="SynerDiff VAE worker" \
      org.opencontainers.image.description="Decodes latents and writes image files for SynerDiff" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.base.digest="${PYTHON_DIGEST}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /etc/passwd /etc/group /etc/
COPY --from=builder --chown=10001:10001 /empty /cache
COPY --from=builder /opt/synerdiff /opt/synerdiff
# The bundled model, which is small; others come by a volume.
COPY models/emoji/model /app/models/emoji/model
# The root may be read-only: nothing is written outside /tmp and /cache. Models are directories: no hub is asked.
ENV PATH=/opt/synerdiff/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPYCACHEPREFIX=/opt/synerdiff/pycache \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    HF_HUB_OFFLINE=1 \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    CUDA_CACHE_PATH=/cache/cuda \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001:10001
# gRPC, plaintext health, metrics, where the settings say so: the deployment sets them by environment.
EXPOSE 50053 50063 9093
STOPSIGNAL SIGTERM
CMD ["python", "-m", "services.vae_worker"]
