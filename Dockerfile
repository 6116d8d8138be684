# A node in a container, as a user of its own:
#   docker build -t sepal .
#   docker run --rm --network host -v sepal:/var/lib/sepal sepal serve org/model --port 31330 --initial-peers ADDR \
#       --identity /var/lib/sepal/node.key
# Limits of memory (--memory 16g) count for what it takes on. --gpus all lends it NVIDIA cards; NVRTC and cuBLAS have to be in
# the image then, from a base of nvidia/cuda with the runtime instead of the second one below.
FROM rust:1.89-bookworm AS build
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin sepal

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --home-dir /var/lib/sepal --create-home sepal
COPY --from=build /build/target/release/sepal /usr/local/bin/sepal
USER sepal
WORKDIR /var/lib/sepal
ENV HF_HOME=/var/lib/sepal/huggingface XDG_CACHE_HOME=/var/lib/sepal/cache
VOLUME /var/lib/sepal
EXPOSE 31330/tcp 31330/udp
# Ctrl-C and `docker stop` both let it say goodbye.
STOPSIGNAL SIGINT
ENTRYPOINT ["sepal"]
CMD ["--help"]
