# The image of every process of the service. For NVIDIA GPUs:
#   docker build --build-arg CMAKE_ARGS="-DGGML_CUDA=on" \
#     --build-arg BUILD_IMAGE=nvidia/cuda:12.8.1-devel-ubuntu24.04 \
#     --build-arg RUN_IMAGE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
ARG BUILD_IMAGE=debian:bookworm-slim
ARG RUN_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.txt ./
COPY scripts/llama.cmake scripts/
# The image must run on other processors than the one that builds it, hence no GGML_NATIVE.
ARG CMAKE_ARGS=""
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --disable-pip-version-check uv==0.13.9 \
    && CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_ALL_WARNINGS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DCMAKE_PROJECT_INCLUDE=/app/scripts/llama.cmake ${CMAKE_ARGS}" \
        .venv/bin/uv --no-cache pip install --python .venv/bin/python --no-deps --require-hashes --compile-bytecode -r requirements.txt \
    && .venv/bin/uv --no-cache pip install --python .venv/bin/python --constraint requirements.txt "$(grep -oE '^torch==[^ ]+' requirements.txt)" \
    && .venv/bin/pip uninstall --yes uv

FROM ${RUN_IMAGE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home sopllm
WORKDIR /app
COPY --from=build /app/.venv .venv
COPY manage.py celery_app.py ./
COPY conversations conversations
COPY inference inference
COPY monitoring monitoring
COPY presets presets
COPY sopllm sopllm
RUN mkdir -p var /models /files && chown sopllm: var /models /files
USER sopllm
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    APP_ENV=production \
    SERVER_HOST=0.0.0.0 \
    MODELS_DIR=/models
EXPOSE 8000
# Others may not read what it writes. A worker is asked to end with SIGTERM, which reaches the process itself: the shell is gone by then.
ENTRYPOINT ["sh", "-c", "umask 077 && exec \"$@\"", "sh"]
CMD ["uvicorn", "sopllm.asgi:application", "--host", "0.0.0.0", "--port", "8000", "--loop", "uvloop", "--http", "sopllm.http_protocol:LimitedHttpProtocol", "--no-access-log", "--timeout-graceful-shutdown", "10", "--ws-max-size", "1048576", "--ws-per-message-deflate", "false"]
