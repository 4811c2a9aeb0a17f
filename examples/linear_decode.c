/* linear_decode.c - a decoder that costs nothing: the latents' first three channels as red, green
 * and blue, each a square of 8 x 8 pixels.
 *
 *     cc -O2 -o linear_decode linear_decode.c $(pkg-config --cflags --libs sluice-stage) -lm
 *
 * The bytes are those of linear_decode.py. */
#include <math.h>

#include <sluice/stage.h>

/* Latent frame t of x [16, T, h, w] as rgb [n, 8h, 8w, 3]. */
static void paint(const sl_tensor *rgb, const sl_tensor *x, int64_t t)
{
    const int64_t h = x->shape[2], w = x->shape[3], plane = h * w;
    const float *latents = x->data;
    uint8_t *to = rgb->data;
    for (int64_t f = 0; f < rgb->shape[0]; f++)
        for (int64_t row = 0; row < 8 * h; row++)
            for (int64_t column = 0; column < 8 * w; column++)
                for (int64_t c = 0; c < 3; c++) {
                    const int64_t at = row / 8 * w + column / 8;
                    const float v = 128 + 48 * latents[(c * x->shape[1] + t) * plane + at];
                    *to++ = (uint8_t)lrintf(fminf(fmaxf(v, 0), 255));
                }
}

static sl_code decode(sl_stage *s, void *self, sl_err *err)
{
    sl_tensor x, rgb;
    sl_code rc = sl_stage_input(s, "latents", NULL, &x, err);
    (void)self;
    for (int64_t t = 0; !rc && t < x.shape[1]; t++) {
        if ((rc = sl_stage_chunk(s, t ? 4 : 1, NULL, &rgb, err))) break;
        paint(&rgb, &x, t);
        rc = sl_stage_send(s, err);
    }
    return rc;
}

int main(int argc, char **argv)
{
    return sl_stage_main("decode", decode, NULL, argc, argv);
}
