# shellcheck shell=bash disable=SC2154  # scripts/alerts sets the ports
# The runs of scripts/alerts: a fault, the alert, the steps of docs/runbook-alerts.md, the end of the alert. Sourced.
#
# Each run leaves the shop as it found it: ingest and generate run, traffic flows.

run_quiet() {
  note "a fresh start, then traffic"
  must_be_quiet 90
  no_traffic
  note "no traffic"
  must_be_quiet 60
  traffic
}

run_no_progress() {
  note "the only generate is killed"
  kill -KILL "$(pid generate)"
  must_fire NearshoreNoProgress
  step "curl -s http://127.0.0.1:$generate_port/readyz || echo no answer"
  step "nearshore namespace list --config $SITE/nearshore.toml 2>/dev/null"
  note "generate is started"
  member generate generate "$generate_port"
  must_end NearshoreNoProgress
  note "Redis does not answer"
  kill -STOP "$(cat "$RUN_DIR/redis/redis.pid")"
  must_fire NearshoreNoProgress
  step "curl -s http://127.0.0.1:$ingest_port/readyz | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"dependencies\"][\"redis\"])'"
  note "Redis answers again"
  kill -CONT "$(cat "$RUN_DIR/redis/redis.pid")"
  must_end NearshoreNoProgress
}

run_late() {
  # A generate that was killed in the run before made lists late, too.
  eventually 120 on_time || note "WRONG: lists are late before the fault"
  note "ingest is rolled out with a quiet period of 5 s; the promise is 2.5 s at this scale"
  end ingest
  member ingest ingest "$ingest_port" NEARSHORE__TRIGGER__QUIET_PERIOD=5s
  must_fire NearshoreListsLate 240
  step "curl -s http://127.0.0.1:$generate_port/metrics | grep -E '^nearshore_requests_oldest_age_seconds'"
  step "NEARSHORE__TRIGGER__QUIET_PERIOD=5s nearshore config --config $SITE/nearshore.toml | grep -E '^quiet_period|^claim_every'"
  note "the configuration is put back, ingest is rolled out"
  end ingest
  member ingest ingest "$ingest_port"
  must_end NearshoreListsLate 480
}

on_time() { [ -n "$(ask 'nearshore:lists_late:ratio_rate30m < 0.01')" ]; }

run_stock() {
  local key
  key=$(redis --scan --pattern 'nearshore:oos:*:fence' | head -n 1)
  note "somebody writes a key of the stock sets by hand: $key"
  redis RENAME "$key" kept >/dev/null
  redis SET "$key" broken >/dev/null
  must_fire NearshoreStockLate
  step "curl -s http://127.0.0.1:$ingest_port/readyz | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"dependencies\"][\"sold-out-sets\"])'"
  step "redis TYPE $key"
  note "the key is restored"
  step "redis DEL $key"
  step "redis RENAME kept $key"
  must_end NearshoreStockLate
}

run_stopped() {
  local user=stopped-user key='main:{stopped-user}:state' topic=user-events
  send user-events $user '{"type":"view","sku":"sku-1"}'
  send profile-changes $user '{"club":"gold"}'
  eventually 20 redis_has "$key" || note "WRONG: no state of the user"
  note "a state of a newer version, as a newer program leaves it"
  redis HSET "$key" blob c-newer >/dev/null
  redis HINCRBY "$key" ver 1 >/dev/null
  note "user-events keeps records for one minute"
  topic_config user-events retention.ms=60000
  send user-events $user '{"type":"view","sku":"sku-2"}'
  send profile-changes $user NULL
  must_fire NearshorePartitionStopped
  must_fire NearshoreNearRetention
  must_fire NearshoreEraseOverdue
  step "curl -s http://127.0.0.1:$ingest_port/readyz | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"dependencies\"][\"partitions\"])'"
  note "retention first: nothing is lost while one repairs"
  topic_config $topic retention.ms=604800000
  must_end NearshoreNearRetention
  note "the value is deleted (in production: run the newer version)"
  step "redis DEL '$key'"
  must_end NearshorePartitionStopped
  must_end NearshoreEraseOverdue
  step "nearshore forget --proof $user --config $SITE/nearshore.toml 2>/dev/null | tail -n 4"
}

redis_has() { [ "$(redis EXISTS "$1")" = 1 ]; }
topic_config() { # TOPIC SETTING
  step "kafka-configs.sh --alter --topic $1 --add-config $2"
}
kafka-configs.sh() {
  "$SCRIPTS/kafka" tool kafka.admin.ConfigCommand --bootstrap-server "$KAFKA" "$@"
}

run_dlq() {
  note "a producer sends 40 records that cannot be used"
  for n in {1..40}; do send user-events "user-$n" '{"type":"purchase","sku":7}'; done
  must_fire NearshoreDlqGrows
  step "nearshore dlq list --config $SITE/nearshore.toml 2>/dev/null | head -n 3"
  note "the producer is corrected"
  must_end NearshoreDlqGrows
}

run_two_installations() {
  note "a second installation with another Redis and the same prefix"
  start_redis second-redis "$second_redis_port"
  member other ingest "$other_port" "NEARSHORE__REDIS__URL=redis://127.0.0.1:$second_redis_port"
  must_fire NearshoreTwoInstallations
  step "curl -s http://127.0.0.1:$ingest_port/readyz | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"dependencies\"][\"installation\"])'"
  note "the second one gets a prefix of its own"
  end other
  member other ingest "$other_port" "NEARSHORE__REDIS__URL=redis://127.0.0.1:$second_redis_port" NEARSHORE__KAFKA__GROUP_PREFIX=staging
  must_end NearshoreTwoInstallations
  step "nearshore sweep --config $SITE/nearshore.toml 2>/dev/null | tail -n 1"
  end other
}

run_degraded() {
  local good
  good=$(cat "$SITE/current")
  note "align writes a pointer to an artefact that is not there"
  echo missing >"$SITE/current"
  must_fire NearshoreListsDegraded
  step "grep refused $SITE/generate/nearshore.log | tail -n 1 | cut -c 1-200"
  note "the pointer names the artefact before"
  echo "$good" >"$SITE/current"
  must_end NearshoreListsDegraded
  note "generate is rolled out with a theta that no name reaches"
  end generate
  sed 's/^names = 3/names = 3\ntheta = 1000.0/' "$SITE/nearshore.toml" >"$SITE/theta.toml"
  cp "$SITE/nearshore.toml" "$SITE/kept.toml"
  cp "$SITE/theta.toml" "$SITE/nearshore.toml"
  member generate generate "$generate_port"
  must_fire NearshoreListsDegraded
  send user-events new-user '{"type":"view","sku":"sku-1"}'
  eventually 20 redis_has 'main:{new-user}:recall' || note "WRONG: a new user has no list"
  step "nearshore inspect new-user --config $SITE/nearshore.toml 2>/dev/null | grep -E '^LIST|reason|no scored'"
  step "grep theta $SITE/nearshore.toml"
  note "theta is taken out"
  cp "$SITE/kept.toml" "$SITE/nearshore.toml"
  end generate
  member generate generate "$generate_port"
  must_end NearshoreListsDegraded
}

run_resources() {
  local open
  open=$(find "/proc/$(pid ingest)/fd" -mindepth 1 | wc -l)
  note "ingest has $open descriptors open and may have $((open + 8)) from now on"
  prlimit --pid "$(pid ingest)" --nofile=$((open + 8)):4096
  must_fire NearshoreResourcesShort
  step "curl -s http://127.0.0.1:$ingest_port/metrics | grep -E '^process_(open|max)_fds'"
  note "the limit is raised"
  step "prlimit --pid $(pid ingest) --nofile=4096"
  must_end NearshoreResourcesShort
}

run_coverage() {
  note "traffic for a minute, then ingest is rolled out with weights of 0: no event requests a list"
  sleep 60
  end ingest
  member ingest ingest "$ingest_port" NEARSHORE__TRIGGER__WEIGHTS__PURCHASE=0.0
  must_fire NearshoreCoverageFalls 300
  step "curl -s http://127.0.0.1:$ingest_port/metrics | grep -E '^nearshore_requests_total'"
  step "NEARSHORE__TRIGGER__WEIGHTS__PURCHASE=0.0 nearshore config --config $SITE/nearshore.toml | grep -A 8 'trigger.weights' | grep -E 'purchase|click'"
  note "the weights are put back, ingest is rolled out, and a sweep requests what is missing"
  end ingest
  member ingest ingest "$ingest_port"
  eventually 60 ready "$ingest_port" || true
  step "nearshore sweep --config $SITE/nearshore.toml 2>/dev/null | tail -n 1"
  must_end NearshoreCoverageFalls
}
