# docker build -f docker/cuda.Dockerfile -t mtxl_rl:cuda . && docker run --rm --gpus all -v "$PWD/runs:/work/runs" mtxl_rl:cuda env=MemoryMaze
# torch's wheels bring their CUDA libraries; the host needs the driver and the NVIDIA container toolkit.
FROM python:3.13-slim
# torch.compile needs a C++ compiler for Triton's launchers.
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip install --no-cache-dir "/src[report,video]" && python -m mtxl_rl.get_textures
WORKDIR /work
ENTRYPOINT ["python", "-m", "mtxl_rl.train"]
