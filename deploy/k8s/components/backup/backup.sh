#!/bin/sh
# Dump every database that $DSNS has a file for into $BACKUPS/<time>/<name>.dump, and drop what is older than $KEEP_DAYS.
#
# The account store comes first: restored together, it is then never ahead of the rooms, and the projector brings it up
# to them from its cursors. A folder without ".part" is complete.
set -eu
: "${DSNS:=/etc/backup/dsns}" "${BACKUPS:=/backups}" "${KEEP_DAYS:=14}"

folder=$BACKUPS/$(date -u +%Y-%m-%dT%H%M%SZ)
mkdir -p "$folder.part"

dump() { # name
    echo "dumping $1"
    pg_dump --dbname="$(cat "$DSNS/$1")" --format=custom --no-owner --no-privileges --lock-wait-timeout=60s \
        --file="$folder.part/$1.dump"
    # It can be read to its end.
    pg_restore --list "$folder.part/$1.dump" > /dev/null
}

dump accounts
for path in "$DSNS"/*; do
    name=${path##*/}
    [ "$name" = accounts ] || dump "$name"
done

sync
mv "$folder.part" "$folder"
echo "done: $folder"
find "$BACKUPS" -mindepth 1 -maxdepth 1 -type d -mtime "+$KEEP_DAYS" -exec rm -rf {} +
