#!/bin/sh
# Makes what docker-compose.yml needs and no repository may hold: names in .env, secrets in deploy/docker/secrets.
#
#   deploy/docker/setup.sh SERVER_NAME [MATRIX_HOST [ELEMENT_HOST]]
#
# SERVER_NAME is the part of user IDs after the colon and can never be changed; MATRIX_HOST is where clients connect
# (default: matrix.SERVER_NAME), ELEMENT_HOST where Element Web is (default: element.SERVER_NAME).
# What is there already stays as it is, so that running it twice changes nothing.
set -eu

if [ $# -lt 1 ] || [ $# -gt 3 ]; then
    sed -n '2,8p' "$0" | cut -c3- >&2
    exit 2
fi
server_name=$1
matrix_host=${2:-matrix.$server_name}
element_host=${3:-element.$server_name}
case "$server_name$matrix_host$element_host" in
*[!A-Za-z0-9.:-]*)
    echo "setup.sh: names consist of letters, digits, dots and dashes" >&2
    exit 2
    ;;
esac

root=$(cd "$(dirname "$0")/../.." && pwd)
secrets=$root/deploy/docker/secrets
umask 077
mkdir -p "$secrets"

random() { # $1 random bytes in base64
    head -c "$1" /dev/urandom | base64 | tr -d '\n='
}

password() {
    random 24 | tr '+/' '-_'
}

# The folder lets only its owner in; the files are readable by all, as each container reads them under its own user.
keep() { # name, content: written unless it is there
    if [ -e "$secrets/$1" ]; then
        echo "kept     deploy/docker/secrets/$1"
        return
    fi
    printf '%s\n' "$2" > "$secrets/$1.new"
    chmod 444 "$secrets/$1.new"
    mv "$secrets/$1.new" "$secrets/$1"
    echo "made     deploy/docker/secrets/$1"
}

keep postgres_password "$(password)"
keep accounts_dsn "postgresql://tessera:$(cat "$secrets/postgres_password")@postgres:5432/tessera"
keep valkey_password "$(password)"
keep grafana_password "$(password)"
keep registration_shared_secret "$(password)"
keep signing_key "ed25519 a_$(random 9 | tr -dc 'A-Za-z0-9' | head -c 6) $(random 32)"

if [ -e "$root/.env" ]; then
    echo "kept     .env"
else
    cat > "$root/.env" << END
# Read by docker compose. Made by deploy/docker/setup.sh.
SERVER_NAME=$server_name
MATRIX_HOST=$matrix_host
# What the proxy answers for. Where $server_name itself leads here too: MATRIX_SITES=$matrix_host, $server_name
MATRIX_SITES=$matrix_host
ELEMENT_HOST=$element_host
# small, or cluster; beside it element and monitoring.
COMPOSE_PROFILES=small
HTTP_PORT=80
HTTPS_PORT=443
END
    echo "made     .env"
fi

if [ -e "$root/deploy/docker/element-config.json" ]; then
    echo "kept     deploy/docker/element-config.json"
else
    sed -e "s/@SERVER_NAME@/$server_name/" -e "s/@MATRIX_HOST@/$matrix_host/" \
        "$root/deploy/docker/element-config.json.example" > "$root/deploy/docker/element-config.json"
    chmod 444 "$root/deploy/docker/element-config.json"
    echo "made     deploy/docker/element-config.json"
fi

echo
echo "Keep a copy of deploy/docker/secrets/signing_key: without it the server is another one to all others."
echo "Next: docker compose up -d"
