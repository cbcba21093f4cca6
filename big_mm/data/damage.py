"""What can be wrong with a record, and the exception that says it.

A record is damaged when its bytes are not what its writer wrote or when it holds no usable pair.
That is no mistake of the user, so it is no UserError: the pipeline counts it, logs where it is and
puts another record in its place.
"""

MEANING = {
    "truncated": "the file ends within the record",
    "length_crc": "the checksum of the record's length does not fit",
    "data_crc": "the checksum of the record's bytes does not fit",
    "undecodable_image": "the image is there but is no whole picture",
    "missing_image": "no image, or one of 0 bytes",
    "empty_caption": "no caption, or only blank ones",
    "empty_shard": "a shard without any record (only the doctor counts these)",
    "over_large": "more bytes or more pixels than the limit",
    "malformed": "checksums fit, but no tf.train.Example, or a feature of another type",
}
# A batch's `bad_kind` is an index into this tuple and the sidecar index stores 1 + that index, so
# the order stays and a new kind goes to the end.
DAMAGE = tuple(MEANING)


class BadRecord(Exception):
    """A damaged record: its `kind` (one of DAMAGE), a `detail` for people, and `where` it is.

    Whoever notices the damage often does not know where the bytes came from: `at` fills that in.
    """

    def __init__(self, kind: str, detail: str = "", where: str = ""):
        if kind not in DAMAGE:
            raise ValueError(f"{kind!r} is not a kind of damage; they are {', '.join(DAMAGE)}")
        super().__init__(kind, detail, where)
        self.kind = kind
        self.detail = detail
        self.where = where

    def at(self, where: str) -> "BadRecord":
        """The same damage with its place."""
        return BadRecord(self.kind, self.detail, where)

    def __str__(self) -> str:
        text = f"{self.kind}: {self.detail}" if self.detail else self.kind
        return f"{self.where}: {text}" if self.where else text
