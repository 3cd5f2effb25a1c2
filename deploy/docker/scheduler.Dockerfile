# The scheduler: public API, queue, planning. No torch. From the root: docker build -f deploy/docker/scheduler.Dockerfile .
ARG PYTHON_IMAGE=python:3.11-slim
# sha256:..., to pin what that name stands for.
ARG PYTHON_DIGEST
FROM ${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS base

FROM base AS builder
WORKDIR /source
# Where packages come from, if not from pip's own default.
ARG PIP_INDEX_URL
# What is installed: deploy/docker/pins/PINS.txt.
ARG PINS="scheduler"
COPY deploy/docker/install.sh deploy/docker/
COPY deploy/docker/pins deploy/docker/pins
RUN sh deploy/docker/install.sh /opt/synerdiff dependencies ${PINS}
RUN sh deploy/docker/install.sh /opt/synerdiff slim
COPY pyproject.toml README.md LICENSE ./
COPY synerdiff synerdiff
COPY services services
COPY synerdiff_cli synerdiff_cli
RUN sh deploy/docker/install.sh /opt/synerdiff project
RUN sh deploy/docker/install.sh /opt/synerdiff bytecode services.scheduler synerdiff_cli.main
RUN echo "synerdiff:x:10001:10001::/tmp:/usr/sbin/nologin" >> /etc/passwd && echo "synerdiff:x:10001:" >> /etc/group

FROM base
ARG PYTHON_IMAGE
ARG PYTHON_DIGEST
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="SynerDiff scheduler" \
      org.opencontainers.image.description="Public API, queue and planning of SynerDiff" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.base.digest="${PYTHON_DIGEST}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /etc/passwd /etc/group /etc/
COPY --from=builder /opt/synerdiff /opt/synerdiff
# The root may be read-only: nothing is written outside /tmp.
ENV PATH=/opt/synerdiff/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPYCACHEPREFIX=/opt/synerdiff/pycache \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /app
USER 10001:10001
# gRPC, plaintext health, metrics, where the settings say so: the deployment sets them by environment.
EXPOSE 50051 50061 9091
STOPSIGNAL SIGTERM
CMD ["python", "-m", "services.scheduler"]
