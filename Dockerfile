# The server, without torch: docker build -t alinfik-server .
# Run: docker run -v BUNDLE:/bundle:ro -p 127.0.0.1:50051:50051 -e ALINFIK_ALLOW_INSECURE=true alinfik-server
# ALINFIK_ALLOW_INSECURE because that port is on loopback; for any other, give it TLS and tokens
# (docs/security.md), without which the server refuses to listen on a container's address.

FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/alinfik
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY proto proto
COPY server server
COPY clients clients
# The wheel has four roots; this image needs none of what is in the fourth.
RUN mkdir -p distill/alinfik
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/alinfik/bin/pip install --constraint constraints.txt '.[server,traces]'

FROM python:3.11.13-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin alinfik
COPY --from=build /opt/alinfik /opt/alinfik
ENV PATH=/opt/alinfik/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ALINFIK_BUNDLE=/bundle \
    ALINFIK_LISTEN=0.0.0.0:50051 \
    ALINFIK_METRICS=0.0.0.0:9464
USER 10001
EXPOSE 50051 9464
# Ready once the bundle is loaded and warm: some seconds for a large proxy on a slow disk.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --start-interval=5s \
    CMD ["python", "-m", "alinfik.server.healthcheck"]
ENTRYPOINT ["alinfik-server"]
