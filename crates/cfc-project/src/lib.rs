//! A wrangler config file into a typed, validated project: Worker, containers, bindings, migrations.
