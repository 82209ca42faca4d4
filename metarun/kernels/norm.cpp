// Batch norm with the ReLU that follows it, its gradient and the gradient of that: metarun/batchnorm.py, on a CPU.
//
// What PyTorch does there in ten passes over main memory is done here in one for the sums and one for what comes out.
//
// Images are (tasks, rows, channels), where a row is a place of an image; what belongs to a channel (tasks, channels).
// `sizes` are those three. relu: 0 there is none (then y is not read), 1 there is one, with that slope.
// The same numbers whatever the number of threads.
#include <cmath>

#include "lanes.hpp"

namespace {

constexpr Index GROUP = REGISTERS > 16 ? 4 : 2;  // vectors of channels that are summed side by side
constexpr Index BLOCK = 32;                      // rows that are added up before they join the others
constexpr Index SMALL = 16384;                   // so few numbers are not worth waking the other threads

template <class T>
Room<T>& room() {
    static thread_local Room<T> own;
    return own;
}

// Some channels of a task: where they begin in images, and in what belongs to channels.
template <class T>
struct Part {
    Index rows, step, channels;  // step: from one row to the next
    Index at, channel;
    T* room;

    // A number for each of the channels, and up to a whole vector.
    T* column() {
        T* own = room;
        room += whole<T>(channels);
        return own;
    }

    // f(columns, lanes) for all channels, by whole vectors, GROUP of them and then one, and those left over by one.
    template <class F>
    void groups(F f) const {
        Index j = 0;
        for (; j + GROUP * WIDE<T> <= channels; j += GROUP * WIDE<T>) f(j, Lane<Vector<T>, GROUP>{});
        for (; j + WIDE<T> <= channels; j += WIDE<T>) f(j, Lane<Vector<T>, 1>{});
        for (; j < channels; j++) f(j, Lane<T, 1>{});
    }

    template <class V, Index Q>
    struct Lane {
        using Value = V;
        static constexpr Index COUNT = Q;
        static constexpr Index WIDTH = sizeof(V) / sizeof(T);
        static V at(const T* p) {
            if constexpr (WIDTH > 1)
                return load(p);
            else
                return *p;
        }
        static void to(T* p, V v) {
            if constexpr (WIDTH > 1)
                store(p, v);
            else
                *p = v;
        }
    };

    // The sums over the rows, K of them: f(lanes, where in images, column, sums) adds a row's numbers. What rounding
    // takes from a block that joins the others goes to the next one (Kahan 1965).
    template <int K, class F>
    void sums(T* const (&to)[K], F f) const {
        groups([&](Index j, auto lane) {
            using L = decltype(lane);
            typename L::Value all[L::COUNT][K] = {}, lost[L::COUNT][K] = {};
            for (Index r = 0; r < rows; r += BLOCK) {
                typename L::Value own[L::COUNT][K] = {};
                const Index last = std::min(rows, r + BLOCK);
                for (Index i = r; i < last; i++)
                    for (Index q = 0; q < L::COUNT; q++)
                        f(lane, at + i * step + j + q * L::WIDTH, j + q * L::WIDTH, own[q]);
                for (Index q = 0; q < L::COUNT; q++)
                    for (int s = 0; s < K; s++) {
                        const auto more = own[q][s] - lost[q][s], sum = all[q][s] + more;
                        lost[q][s] = sum - all[q][s] - more;
                        all[q][s] = sum;
                    }
            }
            for (Index q = 0; q < L::COUNT; q++)
                for (int s = 0; s < K; s++) L::to(to[s] + j + q * L::WIDTH, all[q][s]);
        });
    }

    // f(lanes, where in images, column) for all that there is.
    template <class F>
    void all(F f) const {
        groups([&](Index j, auto lane) {
            using L = decltype(lane);
            for (Index i = 0; i < rows; i++)
                for (Index q = 0; q < L::COUNT; q++) f(lane, at + i * step + j + q * L::WIDTH, j + q * L::WIDTH);
        });
    }
};

// Calls f with all parts, each with `columns` columns. With fewer tasks than threads channels are shared out.
template <class T, class F>
void parts(const Index* sizes, int threads, Index columns, F f) {
    const Index tasks = sizes[0], rows = sizes[1], channels = sizes[2];
    if (tasks * rows * channels < SMALL) threads = 1;
    const Index each = whole<T>((channels + (threads - 1) / tasks) / ((threads - 1) / tasks + 1));
    const Index shares = (channels + each - 1) / each;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (Index unit = 0; unit < tasks * shares; unit++) {
        const Index task = unit / shares, first = unit % shares * each, count = std::min(each, channels - first);
        T* own = room<T>().of(columns * each);
        Part<T> part{rows, channels, count, task * rows * channels + first, task * channels + first, own};
        f(part);
    }
}

// y = (x - mean) / sqrt(var + eps) * w + b, through the ReLU; mean and var, biased, are written too.
// The mean is taken off first, not put into a constant: of a channel where all numbers are the same nothing but b is to
// be left, and 1 / sqrt(eps) makes much of a rounding error.
template <class T, int RELU>  // 0: none, 1: with the slope 0, 2: with another
void forward(
    const Index* sizes, const T* x, const T* w, const T* b, T* y, T* mean_, T* var_, T eps, T slope, int threads
) {
    parts<T>(sizes, threads, 2, [=](Part<T>& p) {
        T *scale = p.column(), *sum = p.column(), *mean = mean_ + p.channel, *var = var_ + p.channel;
        const T* shift = b + p.channel;
        const T m = p.rows;
        p.template sums<1>({sum}, [&](auto l, Index at, Index, auto* s) { s[0] += l.at(x + at); });
        for (Index c = 0; c < p.channels; c++) mean[c] = sum[c] / m;
        p.template sums<1>({sum}, [&](auto l, Index at, Index c, auto* s) {
            const auto d = l.at(x + at) - l.at(mean + c);
            s[0] += d * d;
        });
        for (Index c = 0; c < p.channels; c++) {
            var[c] = sum[c] / m;
            scale[c] = w[p.channel + c] / std::sqrt(var[c] + eps);
        }
        p.all([&](auto l, Index at, Index c) {
            auto v = (l.at(x + at) - l.at(mean + c)) * l.at(scale + c) + l.at(shift + c);
            const decltype(v) zero{};
            if (RELU == 1) v = v < zero ? zero : v;  // what is no number stays
            if (RELU == 2) v = v > zero ? v : v * slope;
            l.to(y + at, v);
        });
    });
}

// The gradient of what the ReLU gave, y, taken back through it.
template <bool RELU, class T, class L, class V>
V masked(L l, V g, const T* y, T slope) {
    if (!RELU) return g;
    return l.at(y) > V{} ? g : g * slope;
}

// With xhat = (x - mean) r and r = 1 / sqrt(var + eps), m of each per channel, g taken back through the ReLU:
// gb = sum(g), gw = sum(g xhat), gx = w r (g - gb / m - xhat gw / m).
template <class T, bool RELU>
void gradient(
    const Index* sizes, const T* g, const T* x, const T* y, const T* w, const T* mean_, const T* var, T* gx, T* gw_,
    T* gb_, T eps, T slope, int threads
) {
    parts<T>(sizes, threads, 3, [=](Part<T>& p) {
        T *of_x = p.column(), *of_g = p.column(), *rest = p.column(), *gw = gw_ + p.channel, *gb = gb_ + p.channel;
        const T *mean = mean_ + p.channel, m = p.rows;
        p.template sums<2>({of_x, of_g}, [&](auto l, Index at, Index c, auto* s) {
            const auto v = masked<RELU>(l, l.at(g + at), y + at, slope);
            s[0] += v;
            s[1] += v * (l.at(x + at) - l.at(mean + c));
        });
        for (Index c = 0; c < p.channels; c++) {
            const T r = 1 / std::sqrt(var[p.channel + c] + eps), scale = w[p.channel + c] * r;
            gb[c] = of_x[c];
            gw[c] = of_g[c] * r;
            of_x[c] = -scale * r * gw[c] / m;
            of_g[c] = scale;
            rest[c] = -scale * gb[c] / m;
        }
        p.all([&](auto l, Index at, Index c) {
            const auto v = masked<RELU>(l, l.at(g + at), y + at, slope), d = l.at(x + at) - l.at(mean + c);
            l.to(gx + at, d * l.at(of_x + c) + l.at(rest + c) + v * l.at(of_g + c));
        });
    });
}

// The gradient of s = <to_gx, gx> + to_gw gw + to_gb gb for g, x and w.
// With A = sum(to_gx), B = sum(to_gx xhat) and Q = sum(to_gx g) - A gb / m - B gw / m:
// s = w r Q + to_gw gw + to_gb gb, and ds/dw = r Q; with xhat_g = to_gw - w r B / m
// ds/dg = w r to_gx + xhat_g xhat + to_gb - w r A / m, through the ReLU;
// ds/dxhat = e = - w r gw / m to_gx + xhat_g g, ds/dr = w Q, and
// ds/dx = r (e - mean(e) - xhat mean(e xhat)) - w Q r^2 xhat / m.
template <class T, bool RELU>
void second(
    const Index* sizes, const T* g, const T* x, const T* y, const T* w, const T* mean_, const T* var, const T* gw_,
    const T* gb_, const T* to_gx, const T* to_gw, const T* to_gb, T* for_g, T* for_x, T* for_w, T eps, T slope,
    int threads
) {
    parts<T>(sizes, threads, 7, [=](Part<T>& p) {
        T *g_x = p.column(), *g_to = p.column(), *g_1 = p.column();
        T *x_x = p.column(), *x_to = p.column(), *x_g = p.column(), *x_1 = p.column();
        const T *mean = mean_ + p.channel, m = p.rows;
        p.template sums<3>({g_x, g_to, g_1}, [&](auto l, Index at, Index c, auto* s) {
            const auto v = l.at(to_gx + at);
            s[0] += v;
            s[1] += v * (l.at(x + at) - l.at(mean + c));
            s[2] += v * masked<RELU>(l, l.at(g + at), y + at, slope);
        });
        for (Index c = 0; c < p.channels; c++) {
            const Index at = p.channel + c;
            const T r = 1 / std::sqrt(var[at] + eps), scale = w[at] * r, gw = gw_[at], gb = gb_[at];
            const T A = g_x[c], B = g_to[c] * r, Q = g_1[c] - (A * gb + B * gw) / m;
            const T xhat_g = to_gw[at] - scale * B / m, e_to = -scale * gw / m;
            const T mean_e = (e_to * A + xhat_g * gb) / m, mean_e_xhat = (e_to * B + xhat_g * gw) / m;
            const T of_xhat = -r * mean_e_xhat - w[at] * Q * r * r / m;
            for_w[at] = r * Q;
            g_x[c] = xhat_g * r;
            g_to[c] = scale;
            g_1[c] = to_gb[at] - scale * A / m;
            x_x[c] = of_xhat * r;
            x_to[c] = r * e_to;
            x_g[c] = r * xhat_g;
            x_1[c] = -r * mean_e;
        }
        p.all([&](auto l, Index at, Index c) {
            const auto d = l.at(x + at) - l.at(mean + c), u = l.at(to_gx + at);
            const auto v = masked<RELU>(l, l.at(g + at), y + at, slope);
            const auto of_g = d * l.at(g_x + c) + l.at(g_1 + c) + u * l.at(g_to + c);
            l.to(for_g + at, masked<RELU>(l, of_g, y + at, slope));
            l.to(for_x + at, d * l.at(x_x + c) + l.at(x_1 + c) + v * l.at(x_g + c) + u * l.at(x_to + c));
        });
    });
}

template <class T>
void any_forward(
    const Index* sizes, const T* x, const T* w, const T* b, T* y, T* mean, T* var, double eps, double slope, int relu,
    int threads
) {
    const auto f = !relu ? forward<T, 0> : slope == 0 ? forward<T, 1> : forward<T, 2>;
    f(sizes, x, w, b, y, mean, var, T(eps), T(slope), threads);
}

template <class T>
void any_gradient(
    const Index* sizes, const T* g, const T* x, const T* y, const T* w, const T* mean, const T* var, T* gx, T* gw,
    T* gb, double eps, double slope, int relu, int threads
) {
    const auto f = relu ? gradient<T, true> : gradient<T, false>;
    f(sizes, g, x, y, w, mean, var, gx, gw, gb, T(eps), T(slope), threads);
}

template <class T>
void any_second(
    const Index* sizes, const T* g, const T* x, const T* y, const T* w, const T* mean, const T* var, const T* gw,
    const T* gb, const T* to_gx, const T* to_gw, const T* to_gb, T* for_g, T* for_x, T* for_w, double eps,
    double slope, int relu, int threads
) {
    const auto f = relu ? second<T, true> : second<T, false>;
    f(sizes, g, x, y, w, mean, var, gw, gb, to_gx, to_gw, to_gb, for_g, for_x, for_w, T(eps), T(slope), threads);
}

}  // namespace

#define METARUN_NORM(T, NAME)                                                                                       \
    extern "C" void metarun_norm_##NAME(                                                                            \
        const Index* sizes, const T* x, const T* w, const T* b, T* y, T* mean, T* var, double eps, double slope,    \
        int relu, int threads                                                                                       \
    ) {                                                                                                             \
        any_forward<T>(sizes, x, w, b, y, mean, var, eps, slope, relu, threads);                                    \
    }                                                                                                               \
    extern "C" void metarun_norm_gradient_##NAME(                                                                   \
        const Index* sizes, const T* g, const T* x, const T* y, const T* w, const T* mean, const T* var, T* gx,     \
        T* gw, T* gb, double eps, double slope, int relu, int threads                                               \
    ) {                                                                                                             \
        any_gradient<T>(sizes, g, x, y, w, mean, var, gx, gw, gb, eps, slope, relu, threads);                       \
    }                                                                                                               \
    extern "C" void metarun_norm_second_##NAME(                                                                     \
        const Index* sizes, const T* g, const T* x, const T* y, const T* w, const T* mean, const T* var,            \
        const T* gw, const T* gb, const T* to_gx, const T* to_gw, const T* to_gb, T* for_g, T* for_x, T* for_w,     \
        double eps, double slope, int relu, int threads                                                             \
    ) {                                                                                                             \
        any_second<T>(                                                                                              \
            sizes, g, x, y, w, mean, var, gw, gb, to_gx, to_gw, to_gb, for_g, for_x, for_w, eps, slope, relu,       \
            threads                                                                                                 \
        );                                                                                                          \
    }
METARUN_NORM(float, f32)
METARUN_NORM(double, f64)
