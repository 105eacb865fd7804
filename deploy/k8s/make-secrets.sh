#!/bin/sh
# Prints the Secrets of a namespace, from the files of a folder; what can be made up is made and kept there.
#
#   deploy/k8s/make-secrets.sh [--small] FOLDER | kubectl -n tessera apply -f -
#
# FOLDER holds a file for each key: accounts_dsn, shard_<name> for each further database, redis_password,
# kafka_password, kafka_ca.crt. Made if they are missing: signing.key and registration_shared_secret; with --small, for
# the stores of overlays/small, also postgres_password, redis_password and accounts_dsn. Keep the folder in a safe place.
set -eu

small=false
if [ "${1:-}" = --small ]; then
    small=true
    shift
fi
if [ $# -ne 1 ]; then
    sed -n '2,8p' "$0" | cut -c3- >&2
    exit 2
fi
folder=$1
umask 077
mkdir -p "$folder"

random() { # $1 random bytes in base64
    head -c "$1" /dev/urandom | base64 | tr -d '\n='
}

password() {
    random 24 | tr '+/' '-_'
}

keep() { # name, content: written unless it is there
    if [ ! -e "$folder/$1" ]; then
        printf '%s' "$2" > "$folder/$1"
        echo "made $folder/$1" >&2
    fi
}

keep signing.key "ed25519 a_$(random 9 | tr -dc 'A-Za-z0-9' | head -c 6) $(random 32)"
keep registration_shared_secret "$(password)"
if [ "$small" = true ]; then
    keep postgres_password "$(password)"
    keep redis_password "$(password)"
    keep accounts_dsn "postgresql://tessera:$(cat "$folder/postgres_password")@tessera-postgres:5432/tessera"
fi
if [ ! -s "$folder/accounts_dsn" ]; then
    echo "make-secrets.sh: write the account store's URL (postgresql://...) into $folder/accounts_dsn first" >&2
    exit 1
fi

secret() { # name of the Secret
    printf -- '---\napiVersion: v1\nkind: Secret\ntype: Opaque\nmetadata:\n  name: %s\ndata:\n' "$1"
}

entry() { # key, file
    printf '  %s: %s\n' "$1" "$(base64 < "$folder/$2" | tr -d '\n')"
}

secret tessera-secrets
for path in "$folder"/*; do
    name=${path##*/}
    [ "$name" = postgres_password ] || entry "$name" "$name"
done

# What the nightly dumps connect to.
secret tessera-backup
entry accounts accounts_dsn
for path in "$folder"/shard_*; do
    name=${path##*/}
    [ ! -e "$path" ] || entry "${name#shard_}" "$name"
done

if [ -e "$folder/postgres_password" ]; then
    secret tessera-stores
    entry postgres_password postgres_password
fi
