# docker build -f docker/cpu.Dockerfile -t mtxl_rl . && docker run --rm -v "$PWD/runs:/work/runs" mtxl_rl env=TMaze
FROM python:3.13-slim
# torch.compile needs a C++ compiler.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# torch's CPU build: pass its package index with --build-arg TORCH_INDEX=URL; by default, PyPI's build.
ARG TORCH=torch
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url $TORCH_INDEX} $TORCH
COPY . /src
RUN pip install --no-cache-dir "/src[report,video]" && python -m mtxl_rl.get_textures
WORKDIR /work
ENTRYPOINT ["python", "-m", "mtxl_rl.train"]
