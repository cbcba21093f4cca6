"""`tf.train.Example` without TensorFlow, and the schema that says what its features mean."""

import dataclasses
import functools
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from big_mm.data.damage import BadRecord
from big_mm.spec import UserError

Values = list[bytes] | list[int] | list[float]


def _message_class() -> type[message.Message]:
    """The Example message, declared here: tensorflow_datasets' copy takes half a second to import.

    https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto
    A pool of its own keeps it apart from TensorFlow's, should that be loaded in the same process.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="big_mm/example.proto", package="tensorflow", syntax="proto3"
    )

    def declare(name: str, parent: Any = file) -> descriptor_pb2.DescriptorProto:
        types = parent.message_type if parent is file else parent.nested_type
        return types.add(name=name)

    def add(owner, name, number, kind, repeated=False, type_name=None, **options):
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        options = dict(options, type_name=type_name) if type_name else options
        owner.field.add(name=name, number=number, type=kind, label=label, **options)

    feature = declare("Feature")
    feature.oneof_decl.add(name="kind")
    kinds = (("Bytes", field.TYPE_BYTES), ("Float", field.TYPE_FLOAT), ("Int64", field.TYPE_INT64))
    for number, (name, kind) in enumerate(kinds, start=1):
        add(declare(f"{name}List"), "value", 1, kind, repeated=True)
        name_of_list = f".tensorflow.{name}List"
        oneof = {"type_name": name_of_list, "oneof_index": 0}
        add(feature, f"{name.lower()}_list", number, field.TYPE_MESSAGE, **oneof)
    features = declare("Features")
    entry = declare("FeatureEntry", features)
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, type_name=".tensorflow.Feature")
    entry_name = ".tensorflow.Features.FeatureEntry"
    add(features, "feature", 1, field.TYPE_MESSAGE, repeated=True, type_name=entry_name)
    add(declare("Example"), "features", 1, field.TYPE_MESSAGE, type_name=".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Example = _message_class()


def encode(features: Mapping[str, Any]) -> bytes:
    """A serialized Example; equal features give equal bytes, in whatever order they come.

    Args:
      features: bytes, str (stored as UTF-8), int, bool or float (stored as float32), or a sequence
        or one-dimensional array of one of these. An empty sequence is a feature without values.

    Raises:
      TypeError: a value of another type, or values of different types in one feature.
      ValueError: an integer beyond 64 bits.
    """
    return _fill(_Example(), features).SerializeToString(deterministic=True)


def extend(data: bytes, features: Mapping[str, Any]) -> bytes:
    """A serialized Example with further features; those that it has stay as they are.

    Raises:
      BadRecord: the bytes are no Example ("malformed").
      ValueError: it has one of them already.
      TypeError: as `encode`.
    """
    example = _parse(data)
    for name in features:
        if name in example.features.feature:
            raise ValueError(f"the feature {name!r} is there already")
    return _fill(example, features).SerializeToString(deterministic=True)


def _fill(example: message.Message, features: Mapping[str, Any]) -> message.Message:
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        values = [value] if isinstance(value, (bytes, str, numbers.Real)) else list(value)
        if all(isinstance(v, (bytes, str)) for v in values):
            encoded = [v.encode() if isinstance(v, str) else v for v in values]
            if values:
                feature.bytes_list.value.extend(encoded)
        elif all(isinstance(v, numbers.Integral) for v in values):
            feature.int64_list.value.extend(map(int, values))
        elif all(isinstance(v, numbers.Real) for v in values):
            feature.float_list.value.extend(map(float, values))
        else:
            types = ", ".join(sorted({type(v).__name__ for v in values}))
            raise TypeError(
                f"feature {name!r} holds {types}: an Example holds bytes, text, integers or "
                "floats, and one of these in a feature"
            )
    return example


def _parse(data: bytes) -> message.Message:
    try:
        return _Example.FromString(data)
    except message.DecodeError as error:
        raise BadRecord("malformed", f"not a tf.train.Example ({error})") from error


def decode(data: bytes, names: Collection[str] | None = None) -> dict[str, Values]:
    """{feature: values} of a serialized Example, of the features in `names` only if that is given.

    Raises:
      BadRecord: the bytes are no Example ("malformed").
    """
    features = _parse(data).features.feature
    found = {}
    for name in features if names is None else names:
        if name in features:  # Asking a protobuf map for an absent key would add it.
            feature = features[name]
            kind = feature.WhichOneof("kind")
            found[name] = getattr(feature, kind).value[:] if kind else []
    return found


@dataclasses.dataclass(frozen=True)
class Schema:
    """Which features of a shard hold what. The defaults fit what big_mm writes.

    A record becomes {"image": bytes, "captions": list of str, "key": str, "label": int, ...}, with
    a key for each field that is set and the lists of `decode` for `extra`. img2dataset's shards
    are read by Schema(image="jpg", captions="txt", key="key").

    Attributes:
      image: the feature with the encoded picture, or None.
      captions: the feature, or features, whose values are the captions; blank ones are left out.
        None or () for records without text.
      key: the feature with the record's identifier. None names it by its shard and number.
      label: the feature with a single class number, or None.
      texts: further features with texts, each "name" or "our_name=name": a second kind of caption,
        an instruction. Lists of str like `captions`.
      extra: further features, each "name" or "our_name=name".
      optional: "label" and names in `texts` and `extra` that a record may lack; its key is then
        absent.
    """

    image: str | None = "image"
    captions: str | tuple[str, ...] | None = "caption"
    key: str | None = "key"
    label: str | None = None
    texts: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        own = {"image", "captions", "key", "label"}
        names = [name for name, _ in (*_named(self.texts), *_named(self.extra))]
        for name in names:
            if name in own or names.count(name) > 1:
                raise UserError(f"the schema's further feature {name!r} has the name of another")
        for name in self.optional:
            if name not in names and not (name == "label" and self.label):
                raise UserError(
                    f"the schema's optional {name!r} is neither 'label' nor in texts or extra"
                )

    @classmethod
    def parse(cls, text: str) -> "Schema":
        """A schema written `image=jpg,captions=txt+alt,key=key,label=cls,extra=width+height`.

        What is left out keeps its default; `key=` (nothing after the sign) means None.

        Raises:
          UserError: not of that form.
        """
        values: dict[str, Any] = {}
        fields = [field.name for field in dataclasses.fields(cls)]
        for part in filter(None, text.split(",")):
            name, equals, value = part.strip().partition("=")
            if not equals or name not in fields or name in values:
                raise UserError(
                    f"cannot read {part!r} in the schema {text!r}: write "
                    f"{'=..., '.join(fields)}=..., each at most once"
                )
            if name in ("captions", "texts", "extra", "optional"):
                values[name] = tuple(filter(None, value.split("+")))
            else:
                values[name] = value or None
        return cls(**values)

    def _captions(self) -> tuple[str, ...]:
        return (self.captions,) if isinstance(self.captions, str) else tuple(self.captions or ())

    @functools.cached_property
    def _fields(self) -> tuple[tuple[str, str], ...]:
        """(our name, feature) of all that is read."""
        single = (("image", self.image), ("key", self.key), ("label", self.label))
        fields = [(name, feature) for name, feature in single if feature]
        fields += [("captions", feature) for feature in self._captions()]
        return (*fields, *_named(self.texts), *_named(self.extra))

    @functools.cached_property
    def _features(self) -> frozenset[str]:
        return frozenset(feature for _, feature in self._fields)

    def required(self) -> frozenset[str]:
        """The features that every record must have."""
        return frozenset(feature for name, feature in self._fields if name not in self.optional)

    def check(self, present: Collection[str], where: str) -> None:
        """Raises UserError if a required feature is not among those present in `where`."""
        for name, feature in self._fields:
            if name not in self.optional and feature not in present:
                raise UserError(
                    f"the schema reads {name} from the feature {feature!r}, which the records of "
                    f"{where} do not have; they have {', '.join(sorted(present)) or 'none'}"
                )

    def read(self, data: bytes) -> dict[str, Any]:
        """The mapped record of a serialized Example.

        Raises:
          BadRecord: "malformed", "missing_image" or "empty_caption".
        """
        features = decode(data, self._features)
        record: dict[str, Any] = {}
        if self.image is not None:
            images = features.get(self.image, [])
            if not images or not images[0]:
                raise BadRecord("missing_image", f"no image in the feature {self.image!r}")
            record["image"] = _typed(images, bytes, self.image)[0]
        if names := self._captions():
            record["captions"] = [text for name in names for text in _texts(features, name)]
            if not record["captions"]:
                raise BadRecord("empty_caption", f"no text in {' or '.join(map(repr, names))}")
        if self.key is not None:
            record["key"] = _text(_single(features, self.key), self.key)
        if self.label is not None and (self.label in features or "label" not in self.optional):
            record["label"] = _typed([_single(features, self.label)], int, self.label)[0]
        for name, feature in (*_named(self.texts), *_named(self.extra)):
            if feature not in features and name not in self.optional:
                raise BadRecord("malformed", f"no feature {feature!r}")
        record |= {n: _texts(features, f) for n, f in _named(self.texts) if f in features}
        record |= {n: features[f] for n, f in _named(self.extra) if f in features}
        return record


def _named(entries: Sequence[str]) -> list[tuple[str, str]]:
    """(our name, feature) of each "name" or "our_name=name"."""
    parts = (entry.partition("=") for entry in entries)
    return [(name, feature or name) for name, _, feature in parts]


def _texts(features: Mapping[str, Values], name: str) -> list[str]:
    """The texts of a feature that are not blank."""
    texts = [_text(value, name) for value in features.get(name, [])]
    return [text for text in texts if text.strip()]


def _single(features: Mapping[str, Values], name: str) -> bytes | int | float:
    values = features.get(name, [])
    if len(values) != 1:
        raise BadRecord("malformed", f"{len(values)} values in the feature {name!r}, not one")
    return values[0]


def _typed(values: list, wanted: type, name: str) -> list:
    if not isinstance(values[0], wanted):
        found = type(values[0]).__name__
        raise BadRecord("malformed", f"the feature {name!r} holds {found}, not {wanted.__name__}")
    return values


def _text(value: bytes | int | float, name: str) -> str:
    if isinstance(value, int):
        return str(value)
    try:
        return _typed([value], bytes, name)[0].decode()
    except UnicodeDecodeError as error:
        raise BadRecord("malformed", f"the feature {name!r} is not UTF-8 ({error})") from error
