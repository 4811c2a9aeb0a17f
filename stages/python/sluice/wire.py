"""Messages as bytes and back, by what `sluice protocol --json` prints: for tools that listen, and for
a stage that wants no library. A message is a dict: {"type": "DONE", "job": 1, ...}."""
import struct

from . import errors

_PLAIN = {"i32": "<i", "u32": "<I", "i64": "<q", "u64": "<Q", "f64": "<d"}
_TEXTS = ("str16", "str24", "str64", "text", "dir")


class Wire:
    """protocol: the parsed JSON of `sluice protocol --json`."""

    def __init__(self, protocol):
        self.protocol = protocol
        self.kinds = protocol["kinds"]
        self.by_number = {m["number"]: m for m in protocol["messages"]}
        self.by_name = {m["name"]: m for m in protocol["messages"]}

    def encode(self, message):
        """Bytes of a message. Fields that it lacks are zeros."""
        m = self.by_name[message["type"]]
        body = self._put_all(m["fields"], message)
        head = {"magic": self.protocol["magic"], "version": self.protocol["version"], "type": m["number"], "bytes": len(body)}
        return self._put_all(self.protocol["header"], head) + body

    def decode(self, data):
        """The message of these bytes. Errors: Error("FORMAT") says what is wrong."""
        n = self.protocol["header_bytes"]
        if len(data) < n:
            raise errors.Error("FORMAT", f"message: {len(data)} bytes, want at least {n}")
        head, _ = self._get_all(self.protocol["header"], data, 0)
        for name in ("magic", "version"):
            if head[name] != self.protocol[name]:
                raise errors.Error("FORMAT", f"message: {name} {head[name]}, want {self.protocol[name]}")
        m = self.by_number.get(head["type"])
        if m is None:
            raise errors.Error("FORMAT", f"message: unknown type {head['type']}")
        if head["bytes"] != m["bytes"] or len(data) - n != m["bytes"]:
            raise errors.Error("FORMAT", f"message: {m['name']} has {len(data) - n} bytes, want {m['bytes']}")
        fields, _ = self._get_all(m["fields"], data, n)
        return {"type": m["name"], **fields}

    # ---- fields ----

    def _put_all(self, fields, values):
        out = b""
        for f in fields:
            value = values.get(f["name"])
            if "times" not in f:
                out += self._put(f["kind"], value)
                continue
            value = list(value or [])
            out += b"".join(self._put(f["kind"], v) for v in value + [None] * (f["times"] - len(value)))
        return out

    def _put(self, kind, value):
        size = self.kinds[kind]["bytes"]
        if "fields" in self.kinds[kind]:
            return self._put_all(self.kinds[kind]["fields"], value or {})
        if kind in _PLAIN:
            return struct.pack(_PLAIN[kind], value or 0)
        raw = value.encode(errors="surrogateescape") if isinstance(value, str) else bytes(value or b"")
        room = size - 1 if kind in _TEXTS else size
        return raw[:room].ljust(size, b"\0")

    def _get_all(self, fields, data, at):
        out = {}
        for f in fields:
            values = []
            for _ in range(f.get("times", 1)):
                value, at = self._get(f["kind"], data, at)
                values.append(value)
            out[f["name"]] = values if "times" in f else values[0]
        return out, at

    def _get(self, kind, data, at):
        size = self.kinds[kind]["bytes"]
        if "fields" in self.kinds[kind]:
            return self._get_all(self.kinds[kind]["fields"], data, at)
        raw = bytes(data[at : at + size])
        if kind in _PLAIN:
            return struct.unpack(_PLAIN[kind], raw)[0], at + size
        if kind not in _TEXTS:
            return raw, at + size
        text, end, rest = raw.partition(b"\0")
        if not end or rest.strip(b"\0"):
            raise errors.Error("FORMAT", "message: a text without an end, or with bytes behind it")
        return text.decode(errors="surrogateescape"), at + size
