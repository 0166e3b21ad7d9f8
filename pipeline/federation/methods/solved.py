"""Closed-form heads from sums of features, in one round; the mathematics is in closed_form.py."""

from pipeline.federation.methods.method import Method

METHODS = (
    # Sources: arXiv:2402.04087 (gda), arXiv:2406.01116 (ridge).
    Method(
        "closed-form",
        about="A classifier solved in one round from sums of the clients' features.",
        lanes="solved",
        sends=(),
        private=True,
        settings={
            name: {}
            for name in ("solver", "tune_on", "shape", "strength", "refit", "clip", "noise")
        },
        refusals=(
            (
                lambda c: c.noise > 0 and (c.refit == "yes" or c.tune_on in ("rows", "domain")),
                "noise covers one release of the train rows' sums, and no other use of them: pass "
                "--refit no --tune-on validation, or --noise 0",
            ),
            (
                lambda c: c.clip > 0 and c.tune_on == "rows",
                "a row is left out exactly only of sums that are whole, and clip shortens them: "
                "pass --tune-on domain or validation, or --clip 0",
            ),
        ),
    ),
)
