# The broker: `broker serve` and `broker worker`. Build context: the repository.
FROM debian:trixie-slim
RUN apt-get -qq update \
    && apt-get -qq install -y --no-install-recommends python3-venv ca-certificates git openssh-client \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/broker broker \
    && install -d -o broker -g broker -m 700 /var/lib/broker /var/lib/objects
WORKDIR /opt/broker
# Dependencies first, with an empty package: they change less often than the code.
COPY pyproject.toml README.md ./
RUN mkdir broker && touch broker/__init__.py && python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --quiet --editable .
COPY broker broker
COPY templates templates
COPY migrations migrations
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin
USER broker
VOLUME /var/lib/broker /var/lib/objects
ENTRYPOINT ["broker"]
CMD ["serve"]
