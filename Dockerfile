# docker build -t everstream . && docker run -p 8080:8080 -v everstream:/data -e EVERSTREAM_API_KEY=... everstream
FROM rust:1.95-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --package everstream

# Python's pip fetches models that come as packages.
FROM python:3.13-slim
COPY --from=build /src/target/release/everstream /usr/local/bin/everstream
RUN useradd --create-home everstream && mkdir /data && chown everstream /data
USER everstream
ENV XDG_CACHE_HOME=/data/cache XDG_DATA_HOME=/data
VOLUME /data
EXPOSE 8080
HEALTHCHECK CMD python3 -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/ready')"
ENTRYPOINT ["everstream"]
CMD ["serve", "--addr", "0.0.0.0:8080"]
