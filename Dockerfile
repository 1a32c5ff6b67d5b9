# The image of ingest and generate: docker build -t nearshore .
ARG RUST=1.95
ARG DEBIAN=bookworm

FROM rust:${RUST}-slim-${DEBIAN} AS build
# make and g++ build librdkafka from its sources, with the TLS of Debian's OpenSSL. Packages have no versions here, because
# Debian removes old ones.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends binutils g++ libssl-dev make pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked --bin nearshore \
 && mkdir -p /out \
 && objcopy --only-keep-debug target/dist/nearshore /out/nearshore.debug \
 && objcopy --strip-all --add-gnu-debuglink=/out/nearshore.debug target/dist/nearshore /out/nearshore

FROM debian:${DEBIAN}-slim
# The CAs that are trusted where the configuration names none. They bring OpenSSL's library, which the binary needs.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin nearshore
COPY --from=build /out/nearshore /usr/local/bin/nearshore
# Line tables for a debugger or perf; the binary itself is stripped.
COPY --from=build /out/nearshore.debug /usr/local/lib/debug/nearshore.debug
# The reference configuration and its prompt templates. Mount your nearshore.toml over this one.
COPY config /etc/nearshore
USER 10001:10001
# Metrics, health and inspect. The default is loopback, which cannot be reached from outside the container.
ENV NEARSHORE__HTTP__LISTEN=0.0.0.0:9464
EXPOSE 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["nearshore"]
CMD ["run", "--config", "/etc/nearshore/nearshore.toml"]
