# syntax=docker/dockerfile:1
# The service alone: no shell, not root, nothing written but /data. docs/DEPLOY.md says how to run it.

# The compiler of rust-toolchain.toml.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# What others wrote is built in a layer of its own, which stands until Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
COPY benches benches
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --release --locked && rm -r src

COPY README.md tiers.yaml prices.yaml ./
COPY schemas schemas
COPY fixtures/demo fixtures/demo
COPY migrations migrations
COPY src src
# Cargo goes by times, and a file of the repository may be older than the stand-in.
RUN find src migrations -type f -exec touch {} + && cargo build --release --locked && mkdir /empty

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/release/spendgate /usr/local/bin/spendgate
# 65532 is the image's nonroot.
COPY --from=build --chown=65532:65532 /empty /data
VOLUME /data
# A tiers.yaml or prices.yaml that is mounted here is found.
WORKDIR /etc/spendgate
ENV DATA_DIR=/data LISTEN_ADDR=0.0.0.0:8080
EXPOSE 8080
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/spendgate", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/spendgate"]
