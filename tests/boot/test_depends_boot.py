"""A unikernel with libraries of DEPENDS: C++ with exceptions and threads, zlib and openssl, in one program."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from redislib import ROOT, uklimg

pytestmark = [pytest.mark.boot, pytest.mark.timeout(3600)]

TAG = "uklimg-test/libraries"
PROGRAM = r"""
#include <iomanip>
#include <iostream>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>
#include <zlib.h>

using Bytes = std::vector<unsigned char>;
static thread_local int depth;

static Bytes packed(const Bytes &text)
{
    uLongf size = compressBound(text.size());
    Bytes out(size);
    if (compress2(out.data(), &size, text.data(), text.size(), 9) != Z_OK)
        throw std::runtime_error("compress2");
    out.resize(size);
    return out;
}

static Bytes unpacked(const Bytes &text, uLongf size)
{
    Bytes out(size);
    depth++;
    if (uncompress(out.data(), &size, text.data(), text.size()) != Z_OK)
        throw std::runtime_error("damaged");
    return out;
}

static std::string sha256(const Bytes &text)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size;
    if (!EVP_Digest(text.data(), text.size(), digest, &size, EVP_sha256(), nullptr))
        throw std::runtime_error("EVP_Digest");
    std::ostringstream shown;
    for (unsigned i = 0; i < size; i++)
        shown << std::hex << std::setw(2) << std::setfill('0') << int(digest[i]);
    return shown.str();
}

int main()
{
    Bytes text(1 << 20, 'a');
    std::vector<std::string> said(4);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < said.size(); i++)
        threads.emplace_back([&, i] {
            Bytes small = packed(text);
            said[i] = sha256(unpacked(small, text.size()));
            small[small.size() / 2] ^= 0xff;
            try {
                unpacked(small, text.size());
            } catch (const std::runtime_error &error) {
                said[i] += std::string(" ") + error.what() + " " + std::to_string(depth);
            }
        });
    for (auto &thread : threads)
        thread.join();
    for (const auto &line : said)
        std::cout << line << std::endl;
    unsigned char random[32] = {0};
    std::cout << "random " << RAND_bytes(random, sizeof(random)) << std::endl;
}
"""
UKLFILE = """FROM debian:trixie AS build
DEPENDS openssl zlib
COPY main.cc /src/
RUN $CXX -O2 -pthread -o /src/program /src/main.cc -lssl -lcrypto -lz && /src/program
FROM ukl:6.12
LINK --from=build /src/program
"""
# sha256 of a mebibyte of the letter a
DIGEST = "9bc1b2a288b26af7257a36277ae3816a7d4f16e89c1e7e77d0a5c48bad62b360"


def test_a_unikernel_with_libraries_of_depends(tmp_path: Path) -> None:
    shutil.copy(ROOT / "scripts/example.lock", tmp_path / "Uklfile.lock")
    (tmp_path / "main.cc").write_text(PROGRAM)
    (tmp_path / "Uklfile").write_text(UKLFILE)
    built = uklimg("build", "--progress", "plain", "-t", TAG, str(tmp_path))
    assert built.status == 0, built.stderr
    ended = uklimg("run", TAG)
    assert ended.status == 0, ended.stdout
    assert ended.stdout.splitlines()[-5:] == [f"{DIGEST} damaged 2"] * 4 + ["random 1"]
