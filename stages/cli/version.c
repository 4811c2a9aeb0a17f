/* version.c - `sluice --version`: what this program is, what it is linked with or loads, what it
 * finds. For reports of faults. */
#include "stages/cli/verbs.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <curl/curl.h>
#include <jansson.h>
#include <jpeglib.h>
#include <libavformat/avformat.h>
#include <microhttpd.h>
#include <sqlite3.h>
#include <zlib.h>
#include <zmq.h>

#include "common/av.h"
#include "common/version.h"
#include "kernels/cpu/blas.h"
#include "stages/job/devices.h"

const char *openblas_get_config(void); /* openblas_config.h lies elsewhere in each distribution */

/* What is loaded when it is used, and what tells its version. */
static struct {
    SL_LIBRARY_FIELD(avformat_version)
    SL_LIBRARY_FIELD(sqlite3_libversion)
    SL_LIBRARY_FIELD(MHD_get_version)
    SL_LIBRARY_FIELD(curl_version_info)
} lib;
static const sl_library_function AVFORMAT[] = {{"avformat_version", &lib.avformat_version}},
                                 SQLITE[] = {{"sqlite3_libversion", &lib.sqlite3_libversion}},
                                 MHD[] = {{"MHD_get_version", &lib.MHD_get_version}},
                                 CURL_[] = {{"curl_version_info", &lib.curl_version_info}};
static sl_library avformat = SL_LIBRARY(libavformat, LIBAVFORMAT_VERSION_MAJOR, AVFORMAT),
                  sqlite = {"libsqlite3.so.0", "SQLite", SQLITE, 1, false},
                  mhd = {"libmicrohttpd.so.12", "libmicrohttpd", MHD, 1, false},
                  curl = {"libcurl.so.4", "libcurl", CURL_, 1, false};

static void print_name(const char *name, const char *version)
{
    printf("  %-14s %s\n", name, version);
}

static void print_av(const char *name, unsigned version)
{
    printf("  %-14s %u.%u.%u\n", name, version >> 16, version >> 8 & 255, version & 255);
}

/* An error in the place of one that is not there. */
static void print_loaded(void)
{
    const sl_av *av;
    sl_err err = {0};
    if (sl_av_load(&av, &err)) print_name("libavcodec", err.msg);
    else print_av("libavcodec", av->avcodec_version());
    if (sl_library_load(&avformat, &err)) print_name("libavformat", err.msg);
    else print_av("libavformat", lib.avformat_version());
    print_name("sqlite", sl_library_load(&sqlite, &err) ? err.msg : lib.sqlite3_libversion());
    print_name("microhttpd", sl_library_load(&mhd, &err) ? err.msg : lib.MHD_get_version());
    print_name("curl", sl_library_load(&curl, &err)
                           ? err.msg
                           : lib.curl_version_info(CURLVERSION_NOW)->version);
}

static void print_devices(void)
{
    sl_conf conf;
    sl_gpus gpus = {0};
    sl_err err = {0};
    struct utsname u = {0};
    uname(&u);
    printf("devices\n  %-14s %s, %s, %ld processors\n", "cpu", u.release, u.machine,
           sysconf(_SC_NPROCESSORS_ONLN));
    sl_conf_defaults(&conf);
    if (sl_conf_use_device(&conf, "cuda:0", &err) || sl_gpus_ask(&gpus, &conf, &err))
        printf("  %-14s none: %s\n", "cuda", err.msg);
    else
        printf("  %-14s %s, compute capability %d.%d, %.1f of %.1f GiB free; %d in all\n", "cuda:0",
               gpus.gpu[0].name, gpus.gpu[0].sm / 10, gpus.gpu[0].sm % 10,
               (double)gpus.gpu[0].free / (1 << 30), (double)gpus.gpu[0].total / (1 << 30),
               gpus.count);
}

int sl_cli_version(int argc, char **argv)
{
    int major, minor, patch;
    (void)argc, (void)argv;
    zmq_version(&major, &minor, &patch);
    printf("sluice, commit %s, compiler %s\nlibraries\n", sl_version(), __VERSION__);
    print_loaded();
    printf("  %-14s %d.%d.%d\n", "libzmq", major, minor, patch);
    printf("  %-14s %s\n  %-14s %s\n", "openblas", openblas_get_config(), "  kernels",
           sl_blas_settle());
    printf("  %-14s %d (its own ABI's number)\n", "libjpeg", JPEG_LIB_VERSION);
    print_name("zlib", zlibVersion());
    print_name("jansson", JANSSON_VERSION);
    print_devices();
    return 0;
}
