# syntax=docker/dockerfile:1
# CPU (default): docker build -t emovllm .            docker run --rm -p 8000:8000 --shm-size 1g emovllm
# GPU:           docker build -t emovllm --target gpu .
#                docker run --rm --gpus all --ipc host -p 8000:8000 emovllm MODEL --circuit DIR_OR_REPO_ID

FROM vllm/vllm-openai:v0.32.0 AS gpu
WORKDIR /opt/emovllm
COPY pyproject.toml README.md LICENSE ./
COPY emovllm emovllm
COPY server server
COPY offline offline
COPY circuits circuits
# The image has vLLM, PyTorch, Transformers and everything else that we need.
RUN python3 -m pip install --no-cache-dir --no-deps . \
    && useradd --create-home --uid 10001 emovllm \
    && install --directory --owner 10001 --group 10001 /home/emovllm/.cache
# By number, which Kubernetes asks for to know that it is not root.
USER 10001
ENV VLLM_NO_USAGE_STATS=1
EXPOSE 8000
HEALTHCHECK --start-period=10m --interval=15s --timeout=5s --retries=4 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["emovllm", "serve", "--host", "0.0.0.0"]

FROM python:3.11.14-slim-bookworm AS cpu
# vLLM's CPU build links to libnuma, compiles its kernels with g++, and allocates better with tcmalloc.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++=4:12.2.0-3 libnuma1=2.0.16-1 libtcmalloc-minimal4=2.10-1 \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv==0.13.8 \
    && useradd --create-home --uid 10001 emovllm \
    && install --directory --owner 10001 --group 10001 /home/emovllm/.cache
WORKDIR /opt/emovllm
COPY scripts scripts
COPY pyproject.toml README.md LICENSE ./
COPY emovllm emovllm
COPY server server
COPY offline offline
COPY circuits circuits
# Compiled here, for its user may not write beside the packages: each start would compile 3,000 modules anew.
RUN uv pip install --system --no-cache --compile-bytecode --torch-backend cpu \
    --constraints scripts/constraints-cpu.txt --overrides scripts/overrides.txt --overrides scripts/overrides-cpu.txt ".[cpu,smollm2,offline,evaluate]"
# By number, which Kubernetes asks for to know that it is not root.
USER 10001
# The default model is converted while the image is built, so that the first start is quick.
RUN python -c "from emovllm.models import default_model; default_model()"
ENV LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4 VLLM_CPU_KVCACHE_SPACE=2 VLLM_NO_USAGE_STATS=1
EXPOSE 8000
HEALTHCHECK --start-period=10m --interval=15s --timeout=5s --retries=4 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["emovllm", "serve", "--host", "0.0.0.0"]
