#!/usr/bin/env bash
# Creates the missing topics of docs/contract.md. Existing topics are not changed.
set -euo pipefail

case ${1:-} in
  -h | --help | '')
    cat <<'EOF'
Creates the topics of Nearshore that are missing. Existing topics are not changed.

  deploy/topics.sh BOOTSTRAP-SERVERS

Needs kafka-topics.sh of Apache Kafka. In this repository `scripts/kafka tool` can replace it:
  KAFKA_TOPICS="scripts/kafka tool org.apache.kafka.tools.TopicCommand" deploy/topics.sh localhost:9092

Environment:
  KAFKA_TOPICS   the command (default /opt/kafka/bin/kafka-topics.sh)
  PARTITIONS     of each topic (default 12); users are spread over them, so this is also the most workers per role
  REPLICAS       of each partition (default 1; 3 in production)
  COMMAND_CONFIG file with properties for TLS and login, as kafka-topics.sh --command-config reads them (default none)
EOF
    exit
    ;;
esac

read -ra topics_command <<<"${KAFKA_TOPICS:-/opt/kafka/bin/kafka-topics.sh}"
if [ -n "${COMMAND_CONFIG:-}" ]; then topics_command+=(--command-config "$COMMAND_CONFIG"); fi
seven_days=604800000

create() { # TOPIC SETTING...
  local topic=$1 setting
  local -a settings=()
  shift
  for setting in "$@"; do settings+=(--config "$setting"); done
  "${topics_command[@]}" --bootstrap-server "$bootstrap" --create --if-not-exists --topic "$topic" \
    --partitions "${PARTITIONS:-12}" --replication-factor "${REPLICAS:-1}" "${settings[@]}"
}

bootstrap=$1
# Decisions use the record's Kafka timestamp. With LogAppendTime the broker sets it, so no producer's clock matters.
create user-events message.timestamp.type=LogAppendTime
create profile-changes cleanup.policy=compact message.timestamp.type=LogAppendTime
create catalog cleanup.policy=compact message.timestamp.type=LogAppendTime
create regen-urgent retention.ms=$seven_days
create regen-live retention.ms=$seven_days
create regen-backfill retention.ms=$seven_days
create recall-updates cleanup.policy=compact,delete
create dlq retention.ms=$seven_days max.message.bytes=8388608
