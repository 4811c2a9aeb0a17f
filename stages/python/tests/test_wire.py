"""Every message there and back between this package and the C programs; a pool's memory as C laid
it out."""
import ctypes
import mmap
import os
import random
import struct
import unittest

import common
from sluice import errors
from sluice.library import Err, Library, Tensor
from sluice.wire import _TEXTS, Wire


class Message(ctypes.Structure):
    _fields_ = [("opaque", ctypes.c_char * 8192)]  # sl_msg, of a size that this side need not know


class WireTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lib = Library()
        cls.c = cls.lib.c
        cls.c.sl_wire_encode.restype = ctypes.c_size_t
        cls.c.sl_wire_text_of.restype = ctypes.c_char_p
        cls.wire = Wire(common.protocol())

    def value(self, kind, random):
        """Any value of a kind, within what C takes for a list or a team."""
        of = self.wire.kinds[kind]
        if kind in _TEXTS:
            n = random.choice([0, 1, of["bytes"] - 1, random.randrange(of["bytes"])])
            return "".join(random.choice("abc XYZ_09/") for _ in range(n))
        if kind == "tickets":
            n = random.randrange(5)
            return {"count": n, "at": [self.value("row", random) for _ in range(n)]}
        if kind == "row":
            return {"handover": random.randrange(2**32), "way": random.randrange(2), "ticket": self.value("ticket", random)}
        if kind == "team":
            n = random.randrange(17)
            if not n:
                return {}
            return {"size": n, "me": random.randrange(n), "key": random.randrange(2**32), "member": [random.randrange(16) for _ in range(n)]}
        if "fields" in of:
            return {f["name"]: self.value(f["kind"], random) for f in of["fields"]}
        raw = bytes(random.randrange(256) for _ in range(of["bytes"]))
        if kind == "f64":
            return random.choice([0.0, -1.5, 1e300, float("inf")])
        plain = {"i32": "<i", "u32": "<I", "i64": "<q", "u64": "<Q"}
        return struct.unpack(plain[kind], raw)[0] if kind in plain else raw

    def there_and_back(self, data):
        """What C makes of the bytes: its line, and its own bytes."""
        message, err, out = Message(), Err(), (ctypes.c_uint8 * 4096)()
        if self.c.sl_wire_decode(ctypes.byref(message), data, ctypes.c_size_t(len(data)), ctypes.byref(err)):
            raise errors.Error(self.lib.codes[err.code], err.msg.decode())
        n = self.c.sl_wire_encode(out, ctypes.byref(message))
        line = ctypes.create_string_buffer(8192)
        return self.c.sl_wire_text_of(ctypes.byref(message), line, ctypes.c_size_t(8192)).decode(), bytes(out[:n])

    def test_every_message(self):
        r = random.Random(1)
        for m in self.wire.protocol["messages"]:
            for _ in range(50):
                message = {"type": m["name"], **{f["name"]: self.value(f["kind"], r) for f in m["fields"]}}
                data = self.wire.encode(message)
                line, back = self.there_and_back(data)
                self.assertEqual(back, data, m["name"])
                self.assertTrue(line.startswith(m["name"]), line)
                again = self.wire.decode(back)
                self.assertEqual(self.wire.encode(again), data)
                for f in m["fields"]:  # lists come back with their empty rows
                    if "fields" not in self.wire.kinds[f["kind"]]:
                        self.assertEqual(again[f["name"]], message[f["name"]], f"{m['name']}.{f['name']}")
                if "job" in message and m["name"] != "SUBMIT":
                    self.assertIn(f" job={message['job']}", line)

    def test_damaged(self):
        good = self.wire.encode({"type": "FAILED", "job": 3, "code": 4, "message": "why"})
        bad = {"short": good[:10], "magic": b"x" + good[1:], "version": good[:4] + b"\x63" + good[5:], "type": good[:8] + b"\x63" + good[9:],
               "length": good + b"\0", "text": good[:-1] + b"x"}
        for what, data in bad.items():
            with self.assertRaises(errors.Error, msg=what):
                self.wire.decode(data)
            with self.assertRaises(errors.Error, msg=what):
                self.there_and_back(data)

    def test_a_pool(self):
        """A slot that C fills, read by the layout that the protocol tells."""
        pool, lease, err = ctypes.c_void_p(), ctypes.c_void_p(), Err()
        handle, ticket, t = (ctypes.c_uint8 * 256)(), (ctypes.c_uint64 * 3)(), Tensor()
        e, c = ctypes.byref(err), self.c
        self.assertEqual(c.sl_pool_create(ctypes.byref(pool), b"latents", 0, 3, ctypes.c_size_t(100000), e), 0, err.msg)
        c.sl_pool_export(pool, handle)
        self.assertEqual(c.sl_lease_reserve(ctypes.byref(lease), pool, 0, e), 0, err.msg)
        layout = self.wire.protocol["pool"]
        fd = struct.unpack_from("<i", handle, 12)[0]
        block = mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ)

        def number(struct_name, base, field, size=None):
            f = layout[struct_name]["fields"][field]
            return int.from_bytes(block[base + f["offset"] : base + f["offset"] + (size or f["bytes"])], "little")

        slot = layout["block"]["fields"]["slot"]["offset"]

        def state():
            return layout["states"][number("slot", slot, "word") & 255]

        self.assertEqual(number("block", 0, "magic"), layout["magic"])
        self.assertEqual(number("block", 0, "slots"), 3)
        self.assertEqual(state(), "reserved")
        shape = (ctypes.c_int64 * 2)(3, 5)
        self.assertEqual(c.sl_lease_add(lease, b"first", 3, 1, (ctypes.c_int64 * 1)(7), ctypes.byref(t), e), 0, err.msg)
        self.assertEqual(c.sl_lease_add(lease, b"second", 0, 2, shape, ctypes.byref(t), e), 0, err.msg)
        self.assertEqual(state(), "filling")
        (ctypes.c_float * 15).from_address(t.data)[:] = [i / 2 for i in range(15)]
        self.assertEqual(c.sl_lease_seal(lease, None, ticket, e), 0, err.msg)
        self.assertEqual(state(), "ready")
        self.assertEqual(number("slot", slot, "count"), 2)
        at = slot + layout["slot"]["fields"]["tensor"]["offset"] + layout["tensor"]["bytes"]
        name = layout["tensor"]["fields"]["name"]
        self.assertEqual(block[at + name["offset"] :][: name["bytes"]].rstrip(b"\0"), b"second")
        self.assertEqual(self.wire.protocol["dtypes"][number("tensor", at, "dtype")]["name"], "F32")
        dims = layout["tensor"]["fields"]["shape"]["offset"]
        self.assertEqual(struct.unpack_from("<2q", block, at + dims), (3, 5))
        self.assertEqual(number("tensor", at, "rank"), 2)
        self.assertEqual(number("tensor", at, "offset"), layout["align"])
        page = mmap.PAGESIZE
        data = (layout["block"]["bytes"] + page - 1) // page * page + layout["align"]
        self.assertEqual(struct.unpack_from("<15f", block, data), tuple(i / 2 for i in range(15)))
        block.close()
        c.sl_lease_drop(ctypes.byref(lease), None)
        c.sl_pool_close(ctypes.byref(pool))


if __name__ == "__main__":
    unittest.main()
