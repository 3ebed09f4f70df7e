# docker build -t infalign .                          CPU
# docker build -t infalign-gpu --build-arg TARGET=gpu .   NVIDIA GPU
# docker run -p 8000:8000 -v infalign:/data infalign      serves /data/bundles/demo, training it first if there is none
# The first start makes /data/keys.json and prints its key, which may do everything, to the log, once. To make others:
# docker exec CONTAINER infalign key app --role generate, then docker kill -s HUP CONTAINER
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG TARGET=cpu
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/infalign
ENV PATH=/opt/infalign/bin:$PATH
WORKDIR /src
COPY requirements/ requirements/
RUN if [ "$TARGET" = cpu ]; then \
        pip install --no-deps --require-hashes --index-url "$CPU_INDEX" -r requirements/torch-cpu.txt; \
    fi && pip install --no-deps --require-hashes -r "requirements/$TARGET.txt"
COPY pyproject.toml README.md LICENSE ./
COPY infalign/ infalign/
COPY server/ server/
COPY training/ training/
COPY workbench/ workbench/
RUN pip install --no-deps .

FROM ${PYTHON}
# A C compiler: Triton builds its launchers with it on GPU. libnuma and libgomp: vLLM's CPU kernels.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 infalign \
    && install -d -o infalign /data
COPY --from=build /opt/infalign /opt/infalign
ENV PATH=/opt/infalign/bin:$PATH INFALIGN_HOME=/data INFALIGN_KEYS=/data/keys.json PYTHONUNBUFFERED=1
USER infalign
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["sh", "-c", "{ [ -e \"$INFALIGN_KEYS\" ] || infalign key first --role admin; } && infalign train demo --if-missing && exec infalign serve --host 0.0.0.0"]
