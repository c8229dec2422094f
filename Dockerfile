# The image of every process of the service, for x86-64-v3 processors. For NVIDIA GPUs:
#   docker build --build-arg CMAKE_ARGS="-DGGML_CUDA=on" \
#     --build-arg BUILD_IMAGE=nvidia/cuda:12.8.1-devel-ubuntu24.04 \
#     --build-arg RUN_IMAGE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
# PyTorch makes embeddings alone: with TORCH_BACKEND=cu128 on the GPU too, for 4 GB more.
ARG BUILD_IMAGE=debian:bookworm-slim
ARG RUN_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ python3 python3-venv
WORKDIR /app
# Also an index and certificates of one's own: the variables that pip and uv read.
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ARG UV_FIND_LINKS
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    UV_SYSTEM_CERTS=1 \
    UV_NO_CACHE=1 \
    UV_LINK_MODE=copy \
    VIRTUAL_ENV=/app/.venv
RUN python3 -m venv /uv \
    && /uv/bin/pip install --no-cache-dir --disable-pip-version-check uv==0.13.9 \
    && python3 -m venv --without-pip .venv
COPY requirements.txt ./
COPY scripts/llama.cmake scripts/
# The image must run on other processors than the one that builds it, hence no GGML_NATIVE.
ARG CMAKE_ARGS=""
RUN grep -A 9 '^llama-cpp-python==' requirements.txt | sed '/[^\\]$/q' > llama.txt \
    && CMAKE_ARGS="-DGGML_NATIVE=OFF -DCMAKE_PROJECT_INCLUDE=/app/scripts/llama.cmake ${CMAKE_ARGS}" \
        /uv/bin/uv pip install --no-deps --require-hashes -r llama.txt
# Empty: PyTorch comes from the index that all come from.
ARG TORCH_BACKEND=cpu
# What PyTorch was tested with, and what it needs to build further parts, is never used.
RUN sed '/^torch==/,/[^\\]$/d' requirements.txt > others.txt \
    && /uv/bin/uv pip install --compile-bytecode --no-deps --require-hashes -r others.txt \
    && /uv/bin/uv pip install --compile-bytecode ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} \
        --constraint others.txt "$(grep -oE '^torch==[^ ]+' requirements.txt)" \
    && cd .venv/lib/python3.*/site-packages \
    && rm -rf torch/test torch/include torch/bin/*[tT]est* lib/*.so* lib/cmake include \
    && python3 -m compileall -q llama_cpp

FROM ${RUN_IMAGE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt \
    && useradd --system --uid 10001 --create-home sopllm
WORKDIR /app
COPY --from=build /app/.venv .venv
COPY manage.py celery_app.py ./
COPY conversations conversations
COPY inference inference
COPY monitoring monitoring
COPY presets presets
COPY sopllm sopllm
RUN python3 -m compileall -q celery_app.py conversations inference monitoring presets sopllm \
    && mkdir -p var /models /files /kv && chown sopllm: var /models /files /kv
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
CMD ["uvicorn", "sopllm.asgi:application", "--host", "0.0.0.0", "--port", "8000", "--loop", "uvloop", "--http", "sopllm.http_protocol:LimitedHttpProtocol", "--ws", "sopllm.websocket_protocol:FramesProtocol", "--no-access-log", "--timeout-graceful-shutdown", "10", "--ws-max-size", "1048576", "--ws-per-message-deflate", "false"]
