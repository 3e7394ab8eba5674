#!/bin/sh
# Puts the hashes of the roles' passwords into users.acl, then becomes the server.
# ROLES, SECRETS, SERVER, CONFIG, DATA, MAXMEMORY: see compose.yaml. Further arguments go to the server.
set -eu
umask 077
acl=$(mktemp)
cp "$ROLES" "$acl"
for role in admin producer worker monitor; do
  hash=$(printf %s "$(cat "$SECRETS/redis_$role")" | sha256sum | cut -c 1-64)
  sed -i "s/#$role\$/#$hash/; s/#$role /#$hash /" "$acl"
done
exec "$SERVER" "$CONFIG" --aclfile "$acl" --dir "$DATA" --maxmemory "$MAXMEMORY" "$@"
