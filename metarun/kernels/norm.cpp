// Batch norm with the ReLU that follows it, its gradient and the gradient of that: metarun/batchnorm.py, on a CPU.
//
// What PyTorch does there in ten passes over main memory is done here in one: the numbers of a few channels of one task
// are read for the sums, and are still in the core's own cache when they are read again for what comes out. (To copy
// them together there costs more than it gains, with 4096 bytes between images too.)
//
// Tensors are as in Python: x (tasks, n, channels, places), contiguous; what belongs to a channel (tasks, channels).
// `sizes` are those four. relu: 0 there is none (then y is not read), 1 there is one, with that slope.
// The same numbers whatever the number of threads.

#include <cmath>

#include "lanes.hpp"

#define INLINE inline __attribute__((always_inline))

namespace {

// The same loop is written once for whole vectors (Many) and for what is less than a vector (One).
template <class T> struct Many {
    using V = Vector<T>;
    static INLINE V at(const T* p) { return load(p); }
    static INLINE void to(T* p, V v) { store(p, v); }
};
template <class T> struct One {
    using V = T;
    static INLINE V at(const T* p) { return *p; }
    static INLINE void to(T* p, V v) { *p = v; }
};

template <class T> INLINE T total(Vector<T> v) {
    T lanes[WIDE<T>];
    Many<T>::to(lanes, v);
    for (long half = WIDE<T> / 2; half; half /= 2)
        for (long i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}
template <class T> INLINE T total(const T* p, long n) {
    T sum = 0;
    long i = 0;
    if (n >= WIDE<T>) {
        Vector<T> v = Many<T>::at(p);
        for (i = WIDE<T>; i + WIDE<T> <= n; i += WIDE<T>) v += Many<T>::at(p + i);
        sum = total<T>(v);
    }
    for (; i < n; i++) sum += p[i];
    return sum;
}

template <class T> Room<T>& room() {
    static thread_local Room<T> r;
    return r;
}

constexpr long GROUP = REGISTERS > 16 ? 4 : 2;  // vectors that are summed side by side
constexpr long LONG = 512;       // a channel whose places take so many bytes is taken alone
constexpr long TOGETHER = 1024;  // shorter ones go together, up to so many bytes that lie side by side
constexpr long SMALL = 16384;    // so few numbers are not worth waking the other threads

// Rows of numbers, one for each image, `step` apart.
template <class T> struct Rows {
    const T* at;
    long step;
    INLINE const T* operator()(long i, long j) const { return at + i * step + j; }
};

// Some channels of one task. Either one channel with many places ("wide": one number per channel is there once, as a
// vector of equal lanes), or several with few: then it is there `places` times, so that vectors of it fit those of x.
template <class T> struct Part {
    long n, channels, places, step;  // step: from one image to the next
    long at, channel; // where it starts: in x, in what belongs to channels
    bool wide;
    T* room;

    long columns() const { return channels * places; }
    T count() const { return T(n * places); }
    // from a column to what belongs to it
    INLINE long of(long j) const { return wide ? 0 : j; }

    T* column() {
        T* c = room;
        room += wide ? WIDE<T> : (columns() + WIDE<T> - 1) / WIDE<T> * WIDE<T>;
        return c;
    }
    INLINE void fill(T* column, long c, T value) const {
        if (wide) for (long i = 0; i < WIDE<T>; i++) column[i] = value;
        else for (long i = 0; i < places; i++) column[c * places + i] = value;
    }
    INLINE T sum(const T* column, long c) const { return wide ? column[0] : total<T>(column + c * places, places); }

    Rows<T> rows(const T* x) const { return {x + at, step}; }

    // Sums over the images, K of them at once: f(lanes, i, j, sums) adds what row i has from column j on. Those of a
    // wide channel are over its places too.
    template <int K, class F> INLINE void sums(T* const (&to)[K], F f) const {
        using V = Vector<T>;
        constexpr long W = WIDE<T>;
        if (wide) {
            V v[GROUP][K] = {};
            T rest[K] = {};
            for (long i = 0; i < n; i++) {
                long j = 0;
                for (; j + GROUP * W <= places; j += GROUP * W)
                    for (int q = 0; q < GROUP; q++) f(Many<T>{}, i, j + q * W, v[q]);
                for (; j + W <= places; j += W) f(Many<T>{}, i, j, v[0]);
                for (; j < places; j++) f(One<T>{}, i, j, rest);
            }
            for (int s = 0; s < K; s++) {
                for (int q = 1; q < GROUP; q++) v[0][s] += v[q][s];
                to[s][0] = total<T>(v[0][s]) + rest[s];
            }
            return;
        }
        long j = 0, k = columns();
        for (; j + GROUP * W <= k; j += GROUP * W) group<GROUP, K>(to, j, f);
        for (; j + W <= k; j += W) group<1, K>(to, j, f);
        if (j < k && k >= W) group<1, K>(to, k - W, f);  // some columns once more, to the same sums
        else for (; j < k; j++) {
            T v[K] = {};
            for (long i = 0; i < n; i++) f(One<T>{}, i, j, v);
            for (int s = 0; s < K; s++) to[s][j] = v[s];
        }
    }
    template <int Q, int K, class F> INLINE void group(T* const (&to)[K], long j, F f) const {
        Vector<T> v[Q][K] = {};
        for (long i = 0; i < n; i++)
            for (int q = 0; q < Q; q++) f(Many<T>{}, i, j + q * WIDE<T>, v[q]);
        for (int s = 0; s < K; s++)
            for (int q = 0; q < Q; q++) Many<T>::to(to[s] + j + q * WIDE<T>, v[q][s]);
    }

    // f(lanes, i, j) for all that there is; at the end of a row for some twice.
    template <class F> INLINE void all(F f) const {
        constexpr long W = WIDE<T>;
        long k = columns();
        for (long i = 0; i < n; i++) {
            long j = 0;
            for (; j + W <= k; j += W) f(Many<T>{}, i, j);
            if (j < k && k >= W) f(Many<T>{}, i, k - W);
            else for (; j < k; j++) f(One<T>{}, i, j);
        }
    }
};


// f(part) for all there are; it may ask for so many columns.
template <class T, class F> void parts(const long* sizes, int threads, int columns, F f) {
    long tasks = sizes[0], n = sizes[1], channels = sizes[2], places = sizes[3];
    long size = places * (long)sizeof(T);
    bool wide = size >= LONG;
    long each = wide || !size ? 1 : std::max(1L, std::min(channels, TOGETHER / size));
    long many = (channels + each - 1) / each;
    // Guided: neighbours, who share lines of the cache, mostly go to the same thread.
    #pragma omp parallel for schedule(guided) num_threads(threads) if (tasks * n * channels * places > SMALL)
    for (long u = 0; u < tasks * many; u++) {
        long task = u / many, first = channels * (u % many) / many, end = channels * (u % many + 1) / many;
        Part<T> p{};
        p.n = n, p.channels = end - first, p.places = places, p.step = channels * places;
        p.channel = task * channels + first;
        p.at = (task * n * channels + first) * places;
        p.wide = wide;
        p.room = room<T>().of(columns * (wide ? WIDE<T> : p.columns() + WIDE<T>));
        f(p);
    }
}

// y = (x - mean) / sqrt(var + eps) * w + b, through the ReLU; mean and var, biased, are written too.
// The mean is taken off first, not put into a constant: of a channel
// where all numbers are the same nothing but b is to be left, and 1 / sqrt(eps) makes much of a rounding error.
template <class T, int RELU>  // 0: none, 1: with the slope 0, 2: with another
void forward(
    const long* sizes, const T* x_, const T* w, const T* b, T* y, T* mean_, T* var_,
    T eps, T slope, int threads
) {
    parts<T>(sizes, threads, 3, [=](Part<T>& p) {
        T *mean = p.column(), *scale = p.column(), *shift = p.column(), m = p.count();
        auto x = p.rows(x_);
        p.template sums<1>({scale}, [&](auto L, long i, long j, auto* sum) { sum[0] += L.at(x(i, j)); });
        for (long c = 0; c < p.channels; c++) p.fill(mean, c, mean_[p.channel + c] = p.sum(scale, c) / m);
        p.template sums<1>({scale}, [&](auto L, long i, long j, auto* sum) {
            auto d = L.at(x(i, j)) - L.at(mean + p.of(j));
            sum[0] += d * d;
        });
        for (long c = 0; c < p.channels; c++) {
            T var = var_[p.channel + c] = p.sum(scale, c) / m;
            T s = w[p.channel + c] / std::sqrt(var + eps);
            p.fill(scale, c, s);
            p.fill(shift, c, b[p.channel + c]);
        }
        T* to = y + p.at;
        p.all([&](auto L, long i, long j) {
            long q = p.of(j);
            auto v = (L.at(x(i, j)) - L.at(mean + q)) * L.at(scale + q) + L.at(shift + q);
            if (RELU == 1) v = v < decltype(v){} ? decltype(v){} : v;  // what is no number stays
            if (RELU == 2) v = v > decltype(v){} ? v : v * slope;
            L.to(to + i * p.step + j, v);
        });
    });
}


// The gradient of what the ReLU gave, y, taken back through it.
template <bool RELU, class T, class L> INLINE typename L::V masked(L, typename L::V g, const T* y, T slope) {
    if (!RELU) return g;
    return L::at(y) > typename L::V{} ? g : g * slope;
}

// With xhat = (x - mean) r and r = 1 / sqrt(var + eps), m of each per channel, g taken back through the ReLU:
// gb = sum(g), gw = sum(g xhat), gx = w r (g - gb / m - xhat gw / m).
template <class T, bool RELU>
void gradient(
    const long* sizes, const T* g_, const T* x_, const T* y_, const T* w, const T* mean_, const T* var_,
    T* gx, T* gw_, T* gb_, T eps, T slope, int threads
) {
    parts<T>(sizes, threads, 4, [=](Part<T>& p) {
        T *mean = p.column(), *of_x = p.column(), *of_g = p.column(), *rest = p.column(), m = p.count();
        auto g = p.rows(g_), x = p.rows(x_), y = RELU ? p.rows(y_) : x;
        for (long c = 0; c < p.channels; c++) p.fill(mean, c, mean_[p.channel + c]);
        p.template sums<2>({of_x, of_g}, [&](auto L, long i, long j, auto* sum) {
            auto v = masked<RELU>(L, L.at(g(i, j)), y(i, j), slope);
            sum[0] += v;
            sum[1] += v * (L.at(x(i, j)) - L.at(mean + p.of(j)));
        });
        for (long c = 0; c < p.channels; c++) {
            T r = 1 / std::sqrt(var_[p.channel + c] + eps), scale = w[p.channel + c] * r;
            T gb = gb_[p.channel + c] = p.sum(of_x, c), gw = gw_[p.channel + c] = p.sum(of_g, c) * r;
            T s = -scale * r * gw / m;
            p.fill(of_x, c, s);
            p.fill(of_g, c, scale);
            p.fill(rest, c, -scale * gb / m);
        }
        T* to = gx + p.at;
        p.all([&](auto L, long i, long j) {
            long q = p.of(j);
            auto v = masked<RELU>(L, L.at(g(i, j)), y(i, j), slope);
            auto d = L.at(x(i, j)) - L.at(mean + q);
            L.to(to + i * p.step + j, d * L.at(of_x + q) + L.at(rest + q) + v * L.at(of_g + q));
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
    const long* sizes, const T* g_, const T* x_, const T* y_, const T* w, const T* mean_, const T* var_,
    const T* gw_, const T* gb_, const T* to_gx, const T* to_gw, const T* to_gb, T* for_g, T* for_x, T* for_w,
    T eps, T slope, int threads
) {
    parts<T>(sizes, threads, 8, [=](Part<T>& p) {
        T *mean = p.column(), *g_x = p.column(), *g_to = p.column(), *g_1 = p.column();
        T *x_x = p.column(), *x_to = p.column(), *x_g = p.column(), *x_1 = p.column(), m = p.count();
        auto g = p.rows(g_), x = p.rows(x_), to = p.rows(to_gx), y = RELU ? p.rows(y_) : x;
        for (long c = 0; c < p.channels; c++) p.fill(mean, c, mean_[p.channel + c]);
        p.template sums<3>({g_x, g_to, g_1}, [&](auto L, long i, long j, auto* sum) {
            auto v = L.at(to(i, j));
            sum[0] += v;
            sum[1] += v * (L.at(x(i, j)) - L.at(mean + p.of(j)));
            sum[2] += v * masked<RELU>(L, L.at(g(i, j)), y(i, j), slope);
        });
        for (long c = 0; c < p.channels; c++) {
            long at = p.channel + c;
            T r = 1 / std::sqrt(var_[at] + eps), wc = w[p.channel + c], scale = wc * r;
            T gw = gw_[at], gb = gb_[at];
            T A = p.sum(g_x, c), B = p.sum(g_to, c) * r, Q = p.sum(g_1, c) - (A * gb + B * gw) / m;
            T xhat_g = to_gw[at] - scale * B / m, e_to = -scale * gw / m;
            T mean_e = (e_to * A + xhat_g * gb) / m, mean_e_xhat = (e_to * B + xhat_g * gw) / m;
            T of_xhat = -r * mean_e_xhat - wc * Q * r * r / m;
            for_w[at] = r * Q;
            p.fill(g_x, c, xhat_g * r);
            p.fill(g_to, c, scale);
            p.fill(g_1, c, to_gb[at] - scale * A / m);
            p.fill(x_x, c, of_xhat * r);
            p.fill(x_to, c, r * e_to);
            p.fill(x_g, c, r * xhat_g);
            p.fill(x_1, c, -r * mean_e);
        }
        T *gs = for_g + p.at, *xs = for_x + p.at;
        p.all([&](auto L, long i, long j) {
            long q = p.of(j), k = i * p.step + j;
            auto v = L.at(x(i, j)) - L.at(mean + q), u = L.at(to(i, j));
            auto back = masked<RELU>(L, L.at(g(i, j)), y(i, j), slope);
            auto of_g = v * L.at(g_x + q) + L.at(g_1 + q) + u * L.at(g_to + q);
            auto of_x = v * L.at(x_x + q) + L.at(x_1 + q) + back * L.at(x_g + q) + u * L.at(x_to + q);
            L.to(gs + k, masked<RELU>(L, of_g, y(i, j), slope));
            L.to(xs + k, of_x);
        });
    });
}


template <class T>
void any_forward(
    const long* sizes, const T* x, const T* w, const T* b, T* y, T* mean, T* var,
    double eps, double slope, int relu, int threads
) {
    auto f = !relu ? forward<T, 0> : slope == 0 ? forward<T, 1> : forward<T, 2>;
    f(sizes, x, w, b, y, mean, var, T(eps), T(slope), threads);
}
template <class T>
void any_gradient(
    const long* sizes, const T* g, const T* x, const T* y, const T* w, const T* mean, const T* var,
    T* gx, T* gw, T* gb, double eps, double slope, int relu, int threads
) {
    auto f = relu ? gradient<T, true> : gradient<T, false>;
    f(sizes, g, x, y, w, mean, var, gx, gw, gb, T(eps), T(slope), threads);
}
template <class T>
void any_second(
    const long* sizes, const T* g, const T* x, const T* y, const T* w, const T* mean, const T* var,
    const T* gw, const T* gb, const T* to_gx, const T* to_gw, const T* to_gb, T* for_g, T* for_x, T* for_w,
    double eps, double slope, int relu, int threads
) {
    auto f = relu ? second<T, true> : second<T, false>;
    f(sizes, g, x, y, w, mean, var, gw, gb, to_gx, to_gw, to_gb, for_g, for_x, for_w, T(eps), T(slope), threads);
}

}  // namespace

#define METARUN_NORM(T, NAME)                                                                                       \
    extern "C" void metarun_norm_##NAME(                                                                            \
        const long* sizes, const T* x, const T* w, const T* b, T* y, T* mean, T* var,     \
        double eps, double slope, int relu, int threads                                                             \
    ) {                                                                                                             \
        any_forward<T>(sizes, x, w, b, y, mean, var, eps, slope, relu, threads);                    \
    }                                                                                                               \
    extern "C" void metarun_norm_gradient_##NAME(                                                                   \
        const long* sizes, const T* g, const T* x, const T* y, const T* w, const T* mean,              \
        const T* var, T* gx, T* gw, T* gb, double eps, double slope, int relu, int threads                          \
    ) {                                                                                                             \
        any_gradient<T>(sizes, g, x, y, w, mean, var, gx, gw, gb, eps, slope, relu, threads);               \
    }                                                                                                               \
    extern "C" void metarun_norm_second_##NAME(                                                                     \
        const long* sizes, const T* g, const T* x, const T* y, const T* w, const T* mean,              \
        const T* var, const T* gw, const T* gb, const T* to_gx, const T* to_gw, const T* to_gb, T* for_g, T* for_x, \
        T* for_w, double eps, double slope, int relu, int threads                                                   \
    ) {                                                                                                             \
        any_second<T>(                                                                                              \
            sizes, g, x, y, w, mean, var, gw, gb, to_gx, to_gw, to_gb, for_g, for_x, for_w, eps, slope,     \
            relu, threads                                                                                           \
        );                                                                                                          \
    }
METARUN_NORM(float, f32)
METARUN_NORM(double, f64)
