"""What a build leaves on disk: parts, shards, the catalog. Everything appears whole or not at all."""
