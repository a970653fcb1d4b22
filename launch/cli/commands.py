"""The table of commands; nothing is imported here."""

COMMANDS = {
    "init": ("launch.cli.init:init", "Write an annotated launch.toml into this folder."),
    "host": ("launch.cli.host:host", "Add or forget a host of launch.toml."),
    "hosts": ("launch.cli.hosts:hosts", "Show every host, whether it answers, and what it is."),
    "doctor": ("launch.cli.doctor:doctor", "Say whether hosts are fit to train, and what to do where not."),
    "secrets": ("launch.cli.secrets:secrets", "Show which secrets are found, and whether one lies around."),
    "run": ("launch.cli.run:run", "Start a run of a training stage and follow it."),
    "ps": ("launch.cli.ps:ps", "Show the runs of every host."),
    "logs": ("launch.cli.logs:logs", "Print a run's log."),
    "stop": ("launch.cli.stop:stop", "Let a run save and leave."),
    "resume": ("launch.cli.resume:resume", "Go on with a run from its last checkpoint."),
    "sync-out": ("launch.cli.sync:sync_out", "Bring weights and runs home, verified."),
    "versions": ("launch.cli.versions:versions", "Show what earlier syncs brought, or let old ones go."),
    "restore": ("launch.cli.versions:restore", "Get an earlier version back, verified, into a folder of its own."),
    "release-check": ("launch.cli.release:release_check", "Tell what would be lost with a host."),
    "release": ("launch.cli.release:release", "Give a host back, if nothing would be lost."),
    "migrate": ("launch.cli.migrate:migrate", "Move from one host to another, verified, and go on there."),
    "sync-in": ("launch.cli.sync_in:sync_in", "Send data, weights and the tokenizer to a host that lacks them."),
    "ship-image": ("launch.cli.ship:ship_image", "Bring the training image to hosts, sending only what they lack."),
    "image": ("launch.cli.image:image", "Verify, list or remove training images on a host."),
    "env": ("launch.cli.env:env", "Check, list or remove environments on a host."),
}
"""Name -> where it is, and its line in the help."""
