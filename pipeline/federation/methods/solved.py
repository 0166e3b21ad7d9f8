"""The closed-form method: heads from sums of features, in one round; see closed_form.py."""

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
                "noise protects one release of the train rows' sums, not other uses of them: pass "
                "--refit no --tune-on validation, or --noise 0",
            ),
            (
                lambda c: c.clip > 0 and c.tune_on == "rows",
                "leaving a row out is exact only for unclipped sums: "
                "pass --tune-on domain or validation, or --clip 0",
            ),
        ),
    ),
)
