# The gateway: the OpenAI images API over HTTP. No torch. From the root: docker build -f deploy/docker/gateway.Dockerfile .
ARG PYTHON_IMAGE=python:3.11-slim
# sha256:..., to pin what that name stands for.
ARG PYTHON_DIGEST
FROM ${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS base

FROM base AS builder
WORKDIR /source
# Where packages come from, if not from pip's own default.
ARG PIP_INDEX_URL
ARG EXTRAS="gateway"
COPY pyproject.toml constraints.txt ./
COPY deploy/docker/install.sh deploy/docker/requirements.py deploy/docker/
RUN sh deploy/docker/install.sh /opt/synerdiff dependencies ${EXTRAS}
RUN sh deploy/docker/install.sh /opt/synerdiff slim
COPY README.md LICENSE ./
COPY synerdiff synerdiff
COPY services services
COPY synerdiff_cli synerdiff_cli
RUN sh deploy/docker/install.sh /opt/synerdiff project
RUN sh deploy/docker/install.sh /opt/synerdiff bytecode services.gateway
RUN echo "synerdiff:x:10001:10001::/tmp:/usr/sbin/nologin" >> /etc/passwd && echo "synerdiff:x:10001:" >> /etc/group

FROM base
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="SynerDiff gateway" \
      org.opencontainers.image.description="The OpenAI images API before SynerDiff's schedulers" \
      org.opencontainers.image.licenses="Apache-2.0" \
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
# HTTP and metrics, where the settings say so: the deployment sets them by environment.
EXPOSE 8000 9094
STOPSIGNAL SIGTERM
CMD ["python", "-m", "services.gateway"]
