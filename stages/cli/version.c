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

static struct {
    SL_LIBRARY_FIELD(avformat_version)
} format;
static const sl_library_function FORMAT_ROWS[] = {{"avformat_version", &format.avformat_version}};
static sl_library avformat = SL_LIBRARY(libavformat, LIBAVFORMAT_VERSION_MAJOR, FORMAT_ROWS);

static void print_av(const char *name, unsigned version)
{
    printf("  %-14s %u.%u.%u\n", name, version >> 16, version >> 8 & 255, version & 255);
}

/* FFmpeg's, which are loaded when they are used: an error in their place. */
static void print_loaded(void)
{
    const sl_av *av;
    sl_err err = {0};
    if (sl_av_load(&av, &err)) printf("  %-14s %s\n", "libavcodec", err.msg);
    else print_av("libavcodec", av->avcodec_version());
    if (sl_library_load(&avformat, &err)) printf("  %-14s %s\n", "libavformat", err.msg);
    else print_av("libavformat", format.avformat_version());
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
    printf("  %-14s %s\n", "zlib", zlibVersion());
    printf("  %-14s %s\n", "sqlite", sqlite3_libversion());
    printf("  %-14s %s\n", "microhttpd", MHD_get_version());
    printf("  %-14s %s\n", "curl", curl_version_info(CURLVERSION_NOW)->version);
    printf("  %-14s %s\n", "jansson", JANSSON_VERSION);
    print_devices();
    return 0;
}
