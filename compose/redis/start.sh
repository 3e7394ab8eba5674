#!/bin/sh
# Writes the hashes of the roles' passwords into a copy of users.acl, then becomes the server.
# compose.yaml sets ROLES, SECRETS, SERVER, CONFIG, DATA and MAXMEMORY. Further arguments go to the server.
set -eu
umask 077
acl=$(mktemp)
cp "$ROLES" "$acl"
for role in admin producer worker monitor; do
  hash=$(printf %s "$(cat "$SECRETS/redis_$role")" | sha256sum | cut -c 1-64)
  sed -i "s/#$role\$/#$hash/; s/#$role /#$hash /" "$acl"
done
exec "$SERVER" "$CONFIG" --aclfile "$acl" --dir "$DATA" --maxmemory "$MAXMEMORY" "$@"
