// tokenizer.cc - sentencepiece behind a C header; nothing of C++ leaves this file.
//
// T5TokenizerFast differs from plain sentencepiece in three ways, all seen to here
// (transformers convert_slow_tokenizer.py and tokenization_t5.py):
// - control pieces written out in the text (</s>, <pad>, ...) are taken as such; what
//   stands between them is encoded on its own;
// - characters that the model does not know: sentencepiece spells them in byte pieces if
//   the model was trained so. The fast tokenizer does what "byte_fallback" in
//   tokenizer.json says; where it is off, a run of unknown characters is one <unk>.
//   Without that file, the model itself decides;
// - at most max_ids - 1 pieces are kept, then </s>.
#include "common/tokenizer.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <sentencepiece_processor.h>

extern "C" {
#include "common/found.h"
#include "common/path.h"
#include "common/safetensors.h"
}
#include "common/unigram.h"

namespace
{

// A piece that stands for itself when its name is found in the text.
struct special {
    std::string name;
    int32_t id;
};

const size_t FILE_MOST = 100 << 20; // bytes; UMT5's spiece.model has 5 million, its JSON 17

// At most `most` bytes; whether the file goes on behind them is not told.
sl_code read_some(std::string *out, const std::string &path, size_t most, sl_err *err)
{
    std::FILE *f = std::fopen(path.c_str(), "rb");
    if (!f) return sl_fail_errno(err, errno, "tokenizer: cannot open %s", path.c_str());
    char buf[65536];
    size_t n = 1;
    while (n > 0 && out->size() < most) {
        n = std::fread(buf, 1, std::min(sizeof buf, most - out->size()), f);
        out->append(buf, n);
    }
    bool bad = std::ferror(f);
    int why = errno;
    std::fclose(f);
    return bad ? sl_fail_errno(err, why, "tokenizer: cannot read %s", path.c_str()) : SL_OK;
}

sl_code read_file(std::string *out, const std::string &path, sl_err *err)
{
    if (sl_code rc = read_some(out, path, FILE_MOST + 1, err)) return rc;
    return out->size() <= FILE_MOST
               ? SL_OK
               : sl_fail(err, SL_FORMAT, "tokenizer: %s has more than %zu bytes, want a tokenizer",
                         path.c_str(), FILE_MOST);
}

enum class kind { model, json, weights };

// What a file is, by its first bytes: JSON, safetensors (the header's length, then an
// object), else a sentencepiece model, which begins with a line feed and a length.
sl_code kind_of(kind *out, const char *path, sl_err *err)
{
    static const char SPACE[] = " \t\r\n";
    std::string head;
    if (sl_code rc = read_some(&head, path, 256, err)) return rc;
    uint64_t length = 0;
    for (size_t i = 0; i < 8 && i < head.size(); i++)
        length |= (uint64_t)(unsigned char)head[i] << 8 * i;
    *out = kind::model;
    if (head.size() > 8 && length <= FILE_MOST && head[8] == '{') *out = kind::weights;
    size_t at = head.find_first_not_of(SPACE);
    if (at == std::string::npos || (head[at] != '{' && head[at] != '[')) return SL_OK;
    at = head.find_first_not_of(SPACE, at + 1);
    if (at != std::string::npos && std::strchr("\"{[}]", head[at])) *out = kind::json;
    return SL_OK;
}

// Whether tokenizer.json beside the model turns byte pieces off. Its vocabulary holds
// tens of megabytes, so the one key is searched for, as text: in a string of the
// vocabulary its quotes would be escaped or a comma would follow.
bool json_turns_bytes_off(const std::string &model_path)
{
    static const std::string key = "\"byte_fallback\"";
    std::string json;
    size_t slash = model_path.rfind('/');
    std::string path =
        (slash == std::string::npos ? "" : model_path.substr(0, slash + 1)) + "tokenizer.json";
    if (read_file(&json, path, nullptr)) return false;
    for (size_t at = json.rfind(key); at != std::string::npos;
         at = at ? json.rfind(key, at - 1) : std::string::npos) {
        size_t colon = json.find_first_not_of(" \t\r\n", at + key.size());
        if (colon == std::string::npos || json[colon] != ':') continue;
        size_t value = json.find_first_not_of(" \t\r\n", colon + 1);
        return value != std::string::npos && json.compare(value, 5, "false") == 0;
    }
    return false;
}

} // namespace

struct sl_tokenizer {
    sentencepiece::SentencePieceProcessor spm;
    std::vector<special> specials;
    bool bytes; // unknown characters become byte pieces
};

namespace
{

// The first special at or after `from`: its place (npos: none) and which it is.
size_t next_special(const sl_tokenizer &t, const std::string &text, size_t from,
                    const special **which)
{
    size_t best = std::string::npos;
    for (const special &s : t.specials) {
        size_t at = text.find(s.name, from);
        if (at < best) {
            best = at;
            *which = &s;
        }
    }
    return best;
}

// Append the pieces of a text without specials.
bool append(const sl_tokenizer &t, const std::string &text, std::vector<int32_t> *ids)
{
    std::vector<int> pieces;
    if (!t.spm.Encode(text, &pieces).ok()) return false;
    bool unknown = false;
    for (int id : pieces) {
        bool byte = !t.bytes && t.spm.IsByte(id);
        if (!byte) ids->push_back(id);
        else if (!unknown) ids->push_back(t.spm.unk_id());
        unknown = byte;
    }
    return true;
}

// The sentencepiece model that ComfyUI's text encoders hold as a tensor of bytes.
sl_code read_from_weights(std::string *out, const char *path, sl_err *err)
{
    sl_st *st = nullptr;
    if (sl_code rc = sl_st_open_file(&st, path, err)) return rc;
    for (int i = 0; i < sl_st_size(st); i++) {
        const sl_st_entry *e = sl_st_at(st, i);
        if (e->t.rank == 1 && e->t.dtype == SL_U8 && sl_ends_with(e->name, "spiece_model"))
            out->assign((const char *)e->t.data, (size_t)sl_count(&e->t));
    }
    sl_st_close(&st);
    return out->empty() ? sl_fail(err, SL_FORMAT, "tokenizer: %s holds no spiece_model", path)
                        : SL_OK;
}

// The model's bytes: of spiece.model, made of tokenizer.json, or out of a file of weights.
sl_code read_model(std::string *out, kind *is, const char *path, sl_err *err)
{
    if (sl_code rc = kind_of(is, path, err)) return rc;
    if (*is == kind::json) {
        unsigned char *bytes = nullptr;
        size_t n = 0;
        if (sl_code rc = sl_unigram_model(&bytes, &n, path, err)) return rc;
        const std::unique_ptr<unsigned char, void (*)(void *)> owner(bytes, std::free);
        out->assign((const char *)bytes, n);
        return SL_OK;
    }
    return *is == kind::weights ? read_from_weights(out, path, err) : read_file(out, path, err);
}

sl_code open_model(sl_tokenizer *t, const char *path, sl_err *err)
{
    std::string model;
    kind is;
    if (sl_code rc = read_model(&model, &is, path, err)) return rc;
    if (const char *found = sl_found_kind(model.data(), model.size()))
        return sl_fail(err, SL_FORMAT, "tokenizer: %s: is %s", path, found);
    if (model.empty() || !t->spm.LoadFromSerializedProto(model).ok())
        return sl_fail(err, SL_FORMAT, "tokenizer: %s (%zu bytes) is not a sentencepiece model",
                       path, model.size());
    if (t->spm.eos_id() != 1 || t->spm.unk_id() < 0)
        return sl_fail(err, SL_FORMAT, "tokenizer: %s has </s> at %d, T5 wants 1", path,
                       t->spm.eos_id());
    for (int id = 0; id < t->spm.GetPieceSize(); id++)
        if (t->spm.IsControl(id) || t->spm.IsUnknown(id))
            t->specials.push_back({t->spm.IdToPiece(id), id});
    t->bytes = is == kind::json || !json_turns_bytes_off(path);
    return SL_OK;
}

} // namespace

extern "C" sl_code sl_tokenizer_open(sl_tokenizer **out, const char *path, sl_err *err)
{
    sl_tokenizer *t = nullptr;
    sl_code rc;
    *out = nullptr;
    try {
        t = new sl_tokenizer();
        rc = open_model(t, path, err);
    } catch (const std::bad_alloc &) {
        rc = sl_fail(err, SL_NOMEM, "tokenizer: no memory for %s", path);
    } catch (const std::exception &e) {
        rc = sl_fail(err, SL_FORMAT, "tokenizer: %s: %s", path, e.what());
    }
    if (rc) delete t;
    else *out = t;
    return rc;
}

extern "C" sl_code sl_tokenizer_write(const char *from, const char *to, sl_err *err)
{
    try {
        std::string model;
        kind is;
        if (sl_code rc = read_model(&model, &is, from, err)) return rc;
        std::FILE *f = std::fopen(to, "wb");
        if (!f) return sl_fail_errno(err, errno, "%s: cannot be written", to);
        const bool whole = std::fwrite(model.data(), 1, model.size(), f) == model.size();
        const int why = errno;
        if (!std::fclose(f) && whole) return SL_OK;
        return sl_fail_errno(err, whole ? errno : why, "%s: cannot be written", to);
    } catch (const std::exception &e) {
        return sl_fail(err, SL_NOMEM, "tokenizer: %s", e.what());
    }
}

extern "C" void sl_tokenizer_close(sl_tokenizer **t)
{
    delete *t;
    *t = nullptr;
}

extern "C" sl_code sl_tokenizer_encode(const sl_tokenizer *t, const char *text, size_t length,
                                       int32_t *ids, int max_ids, int *n, sl_err *err)
{
    if (max_ids < 1)
        return sl_fail(err, SL_ARG, "tokenizer: room for %d ids, want at least 1", max_ids);
    try {
        std::string whole(text, length);
        std::vector<int32_t> all;
        for (size_t at = 0; at < whole.size() && all.size() < (size_t)max_ids;) {
            const special *which = nullptr;
            size_t end = next_special(*t, whole, at, &which);
            if (!append(*t, whole.substr(at, end == std::string::npos ? end : end - at), &all))
                return sl_fail(err, SL_FORMAT, "tokenizer: sentencepiece refuses the text");
            if (!which) break;
            all.push_back(which->id);
            at = end + which->name.size();
        }
        *n = 0;
        for (int32_t id : all)
            if (*n < max_ids - 1) ids[(*n)++] = id;
        ids[(*n)++] = t->spm.eos_id();
        return SL_OK;
    } catch (const std::exception &e) {
        return sl_fail(err, SL_NOMEM, "tokenizer: %s", e.what());
    }
}
