#!/bin/sh
# Prints .env.example with a new secret in each empty place: sh deploy/compose/env.sh > .env
set -eu
while IFS= read -r line; do
  case $line in
    '#'*) ;;
    LOBEWISE_CALLBACK_SECRETS=) line=${line}whsec_$(openssl rand -base64 32) ;;
    *=) line=$line$(openssl rand -hex 24) ;;
  esac
  printf '%s\n' "$line"
done < "$(dirname "$0")/../../.env.example"
