"""Sentences that class names are put into for zero-shot classification."""

from collections.abc import Sequence

from big_mm.spec import UserError

PLAIN = ("{}",)
PHOTO = ("a photo of a {}.",)
# For photographs of one thing: distance, quality, number, rendering.
ENSEMBLE = (
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of one {}.",
    "a close photo of a {}.",
    "a {} seen from afar.",
    "a small, blurred photo of a {}.",
    "a photo of many {}.",
    "a drawing of a {}.",
)


def fill(templates: Sequence[str], classnames: Sequence[str]) -> list[str]:
    """Every class name in every template: the templates of the first class, of the second, ...

    Raises:
      UserError: no template, or one that does not hold exactly one {}.
    """
    if not templates:
        raise UserError("zero-shot classification needs at least one template, such as '{}'")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"the template {template!r} must hold {{}} exactly once")
    return [t.replace("{}", name) for name in classnames for t in templates]
