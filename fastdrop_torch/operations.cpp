/* Registers dropout and noise as differentiable PyTorch operations in the namespace `fastdrop`.

       dropout, relu_dropout ...    composite: check, take a seed from PyTorch's generator, call
         │
       forward(x, seed) ──> y       one pass of a kernel; the gradient, forward mode too
         │
        bits                        the packed mask, one bit for each element
         │
       backward(dy, bits) ──> dx    linear in dy: its gradient is backward again

       draw(x, seed, kind) ──> y    noise, decisions by a probability of each element, and alpha
                                    dropout for Keras: nothing is stored, and the gradient draws
                                    again

   The kernels are fastdrop's, through its public C interface. PyTorch's C++ interface changes with
   each version, so this file is compiled for the installed one: see library.py. */

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include <ATen/MemoryOverlap.h>
#include <ATen/Functions.h>
#include <ATen/NativeFunctions.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "fastdrop.h"

namespace {

using at::Generator;
using at::OptionalSymIntArrayRef;
using at::Tensor;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::OptionalIntArrayRef;
using c10::SymInt;
using torch::autograd::Node;
using torch::autograd::variable_list;

using Optional = std::optional<Tensor>;
using TensorAndBits = std::tuple<Tensor, Tensor>;

/* ---- fastdrop's C interface, from Python ---- */

std::atomic<const fastdrop_api *> fastdrop;

/* ---- The kernels on plain tensors ---- */

int kind_of(at::ScalarType dtype) {
    switch (dtype) {
    case at::kHalf:
        return FASTDROP_FLOAT16;
    case at::kBFloat16:
        return FASTDROP_BFLOAT16;
    case at::kFloat:
        return FASTDROP_FLOAT32;
    case at::kDouble:
        return FASTDROP_FLOAT64;
    default:
        return -1;
    }
}

void check(int status) {
    TORCH_CHECK(status != FASTDROP_NO_MEMORY, "fastdrop: no memory for a mask");
    TORCH_CHECK(status == FASTDROP_OK, "fastdrop refused the dropout, with status ", status,
                " of fastdrop.h");
}

double inverted(double p) { return p < 1 ? 1 / (1 - p) : 0; }

/* alpha_dropout keeps the mean and the variance of what SELU returns (Klambauer et al., 2017). It
   is bias_forward: select(x + alpha) * a - alpha * a * (1 - p). */
constexpr double alpha = 1.7580993408473766; /* SELU's scale times its alpha */

double alpha_scale(double p) {
    return p < 1 ? 1 / std::sqrt((alpha * alpha * p + 1) * (1 - p)) : 0;
}

/* A tensor of one number. PyTorch rounds a double to float16 by way of float, which must be rounded
   to odd so that the number is rounded once. */
Tensor one_number(double number, const Tensor &like) {
    if (like.scalar_type() == at::kHalf) {
        float nearest = (float)number;
        uint32_t bits;
        std::memcpy(&bits, &nearest, sizeof bits);
        if (nearest != number) {
            bits = (std::fabs(nearest) > std::fabs(number) ? bits - 1 : bits) | 1;
            std::memcpy(&nearest, &bits, sizeof bits);
        }
        number = nearest;
    }
    return at::full({1}, number, like.options());
}

/* The parameters of a kernel. They point into the tensor and into `noise_shape`. */
fastdrop_dropout parameters(const Tensor &x, OptionalIntArrayRef noise_shape, double p,
                            double scale) {
    TORCH_CHECK(x.dim() <= FASTDROP_MAX_DIMS, "Dropout takes tensors of at most ",
                FASTDROP_MAX_DIMS, " dimensions, got ", x.dim());
    TORCH_CHECK_TYPE(kind_of(x.scalar_type()) >= 0,
                     "Dropout takes tensors of dtype float16, bfloat16, float32 or float64, got ",
                     x.scalar_type());
    if (noise_shape) {
        bool fits = (int64_t)noise_shape->size() == x.dim();
        for (int64_t i = 0; fits && i < x.dim(); i++)
            fits = (*noise_shape)[(size_t)i] == 1 || (*noise_shape)[(size_t)i] == x.size(i);
        TORCH_CHECK_VALUE(fits, "`noise_shape` must have the sizes of a tensor of shape ",
                          x.sizes(), ", or 1 in their place, got ", *noise_shape);
    }
    fastdrop_dropout dropout{};
    dropout.kind = kind_of(x.scalar_type());
    dropout.ndim = (int)x.dim();
    dropout.shape = x.sizes().data();
    dropout.noise_shape = noise_shape ? noise_shape->data() : nullptr;
    dropout.rate = p;
    dropout.scale = scale;
    return dropout;
}

/* Reads the seed's low word, the step and, if there is a third, the seed's high word. */
void set_seed(fastdrop_dropout *dropout, const Tensor &seed) {
    TORCH_CHECK(seed.scalar_type() == at::kLong && seed.dim() == 1 && seed.is_contiguous()
                    && (seed.size(0) == 2 || seed.size(0) == 3),
                "`seed` must be a contiguous tensor of two or three int64 words, got ",
                seed.toString(), " of shape ", seed.sizes());
    const int64_t *words = seed.const_data_ptr<int64_t>();
    dropout->seed.low = (uint64_t)words[0];
    dropout->seed.step = (uint64_t)words[1];
    dropout->seed.high = seed.size(0) == 3 ? (uint64_t)words[2] : 0;
}

/* The strides of a tensor in bytes; nullptr stands for C order. */
struct Strides {
    explicit Strides(const Tensor &x) : contiguous(x.is_contiguous()) {
        for (int64_t i = 0; i < x.dim() && !contiguous; i++)
            bytes[i] = x.stride(i) * (int64_t)x.element_size();
    }
    operator const int64_t *() const { return contiguous ? nullptr : bytes; }

    bool contiguous;
    int64_t bytes[FASTDROP_MAX_DIMS];
};

Tensor new_symbolic_bits(const Tensor &x, OptionalSymIntArrayRef noise_shape) {
    SymInt size = 1;
    for (const SymInt &length : noise_shape ? *noise_shape : x.sym_sizes())
        size *= length;
    return at::empty_symint({(size + 7) / 8}, x.options().dtype(at::kByte));
}

Tensor new_bits(const Tensor &x, OptionalIntArrayRef noise_shape) {
    int64_t bytes =
        fastdrop_mask_bytes((int)x.dim(), noise_shape ? noise_shape->data() : x.sizes().data());
    return at::empty({bytes}, x.options().dtype(at::kByte));
}

/* Writes the dropout of x, or of max(x, 0), to y; y may be x. Returns the bits. */
Tensor run_forward(const Tensor &y, const Tensor &x, const Tensor &seed, double p,
                   OptionalIntArrayRef noise_shape, bool relu) {
    fastdrop_dropout dropout = parameters(x, noise_shape, p, inverted(p));
    set_seed(&dropout, seed);
    Tensor bits = new_bits(x, relu ? OptionalIntArrayRef() : noise_shape);
    auto run = relu ? fastdrop.load()->relu_forward : fastdrop.load()->forward;
    check(run(&dropout, y.mutable_data_ptr(), Strides(y), x.const_data_ptr(), Strides(x),
              bits.mutable_data_ptr<uint8_t>()));
    return bits;
}

TensorAndBits forward_cpu(const Tensor &x, const Tensor &seed, double p,
                          OptionalIntArrayRef noise_shape, bool relu) {
    Tensor y = at::empty_like(x);
    return {y, run_forward(y, x, seed, p, noise_shape, relu)};
}

TensorAndBits bias_forward_cpu(const Tensor &x, const Optional &bias, const Optional &residual,
                               const Tensor &seed, double p, OptionalIntArrayRef noise_shape,
                               double scale) {
    fastdrop_dropout dropout = parameters(x, noise_shape, p, scale);
    set_seed(&dropout, seed);
    for (const Optional &operand : {bias, residual})
        TORCH_CHECK(!operand || operand->scalar_type() == x.scalar_type(),
                    "The bias and the residual must have the input's dtype ", x.scalar_type(),
                    ", got ", operand->scalar_type());
    Tensor y = at::empty_like(x), bits = new_bits(x, noise_shape);
    Optional row = bias ? Optional(bias->contiguous()) : bias;
    Optional sum = residual ? Optional(residual->expand_as(x)) : residual;
    check(fastdrop.load()->bias_forward(
        &dropout, y.mutable_data_ptr(), Strides(y), x.const_data_ptr(), Strides(x),
        row ? row->const_data_ptr() : nullptr, row ? row->numel() : 0,
        sum ? sum->const_data_ptr() : nullptr, Strides(sum ? *sum : x),
        bits.mutable_data_ptr<uint8_t>()));
    return {y, bits};
}

Tensor backward_cpu(const Tensor &dy, const Tensor &bits, double scale,
                    OptionalIntArrayRef noise_shape) {
    fastdrop_dropout dropout = parameters(dy, noise_shape, 0, scale);
    TORCH_CHECK(bits.scalar_type() == at::kByte && bits.is_contiguous()
                    && bits.numel()
                           == fastdrop_mask_bytes(dropout.ndim, noise_shape ? noise_shape->data()
                                                                            : dropout.shape),
                "The bits do not fit a gradient of shape ", dy.sizes());
    Tensor dx = at::empty_like(dy);
    check(fastdrop.load()->backward(&dropout, dx.mutable_data_ptr(), Strides(dx),
                                    dy.const_data_ptr(), Strides(dy),
                                    bits.const_data_ptr<uint8_t>()));
    return dx;
}

/* What `draw` computes. Saved programs have these numbers. */
enum Kind : int64_t {
    DROPOUT,
    GAUSSIAN_DROPOUT,
    GAUSSIAN_NOISE,
    ALPHA_DROPOUT,
    ALPHA_DROPOUT_GRADIENT,
    BERNOULLI /* x has rates, and y is 1 where an element is kept, else 0 */
};

/* The kind of the derivative, which is linear; that of GAUSSIAN_NOISE is the identity, and that of
   BERNOULLI is zero. */
int64_t derivative_of(int64_t kind) {
    return kind == ALPHA_DROPOUT ? (int64_t)ALPHA_DROPOUT_GRADIENT : kind;
}

/* Raises an error if an element is not a probability; a NaN is none. */
void check_probabilities(const Tensor &p) {
    const Tensor valid = at::logical_and(at::ge(p, 0), at::le(p, 1));
    if (at::all(valid).item<bool>())
        return;
    const Tensor index = at::nonzero(at::logical_not(valid))[0];
    Tensor wrong = p;
    for (int64_t i = 0; i < p.dim(); i++)
        wrong = wrong[index[i].item<int64_t>()];
    TORCH_CHECK_VALUE(false, "dropout probability has to be between 0 and 1, but got ",
                      wrong.item<double>(), " at index ",
                      at::IntArrayRef(index.const_data_ptr<int64_t>(), (size_t)p.dim()));
}

Tensor draw_cpu(const Tensor &x, const Tensor &seed, int64_t kind, double parameter,
                OptionalIntArrayRef noise_shape) {
    fastdrop_dropout dropout = parameters(x, noise_shape, parameter, inverted(parameter));
    set_seed(&dropout, seed);
    Tensor y = at::empty_like(x);
    const fastdrop_api *api = fastdrop.load();
    const auto noise = [&](double stddev, bool additive) {
        check(api->noise(&dropout, stddev, additive, y.mutable_data_ptr(), Strides(y),
                         x.const_data_ptr(), Strides(x)));
    };
    TORCH_CHECK_VALUE(kind == GAUSSIAN_NOISE || (parameter >= 0 && parameter <= 1),
                      "`parameter` must be a probability, from 0 to 1, got ", parameter);
    switch (kind) {
    case GAUSSIAN_DROPOUT:
        TORCH_CHECK_VALUE(parameter >= 0 && parameter < 1,
                          "`parameter` must be a probability of at least 0 and below 1 for "
                          "Gaussian dropout, got ",
                          parameter);
        noise(std::sqrt(parameter / (1 - parameter)), false);
        return y;
    case GAUSSIAN_NOISE:
        TORCH_CHECK_VALUE(parameter >= 0 && std::isfinite(parameter),
                          "`parameter` must be a standard deviation, finite and at least 0, got ",
                          parameter);
        noise(parameter, true);
        return y;
    case ALPHA_DROPOUT_GRADIENT:
        dropout.scale = alpha_scale(parameter);
        [[fallthrough]];
    case DROPOUT:
        check(api->forward(&dropout, y.mutable_data_ptr(), Strides(y), x.const_data_ptr(),
                           Strides(x), nullptr));
        return y;
    case ALPHA_DROPOUT: {
        if (parameter == 0 || parameter == 1)
            return draw_cpu(x, seed, DROPOUT, parameter, noise_shape);
        static constexpr int64_t repeated[FASTDROP_MAX_DIMS] = {};
        dropout.scale = alpha_scale(parameter);
        const Tensor bias = one_number(alpha, x);
        const Tensor shift = one_number(-alpha * dropout.scale * (1 - parameter), x);
        check(api->bias_forward(&dropout, y.mutable_data_ptr(), Strides(y), x.const_data_ptr(),
                                Strides(x), bias.const_data_ptr(), 1, shift.const_data_ptr(),
                                repeated, nullptr));
        return y;
    }
    case BERNOULLI: {
        const int status = api->bernoulli(&dropout, y.mutable_data_ptr(), Strides(y),
                                          x.const_data_ptr(), Strides(x), nullptr);
        if (status == FASTDROP_BAD_RATE)
            check_probabilities(x);
        check(status);
        return y;
    }
    default:
        TORCH_CHECK(false, "`kind` must be from 0 to ", (int64_t)BERNOULLI, ", got ", kind,
                    ": this fastdrop_torch has no other random operations");
    }
}

/* ---- Shapes, for tensors without data ---- */

TensorAndBits forward_meta(const Tensor &x, const Tensor &, double,
                           OptionalSymIntArrayRef noise_shape, bool relu) {
    return {at::empty_like(x), new_symbolic_bits(x, relu ? OptionalSymIntArrayRef() : noise_shape)};
}

TensorAndBits bias_forward_meta(const Tensor &x, const Optional &, const Optional &, const Tensor &,
                                double, OptionalSymIntArrayRef noise_shape, double) {
    return {at::empty_like(x), new_symbolic_bits(x, noise_shape)};
}

Tensor backward_meta(const Tensor &dy, const Tensor &, double, OptionalSymIntArrayRef) {
    return at::empty_like(dy);
}

Tensor draw_meta(const Tensor &x, const Tensor &, int64_t, double, OptionalSymIntArrayRef) {
    return at::empty_like(x);
}

/* ---- The operations, called through PyTorch's dispatcher ---- */

template <typename Signature> c10::TypedOperatorHandle<Signature> operation(const char *name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

const auto &forward_operation() {
    using Signature =
        TensorAndBits(const Tensor &, const Tensor &, double, OptionalSymIntArrayRef, bool);
    static const auto found = operation<Signature>("fastdrop::forward");
    return found;
}

const auto &bias_forward_operation() {
    using Signature = TensorAndBits(const Tensor &, const Optional &, const Optional &,
                                    const Tensor &, double, OptionalSymIntArrayRef, double);
    static const auto found = operation<Signature>("fastdrop::bias_forward");
    return found;
}

const auto &backward_operation() {
    using Signature = Tensor(const Tensor &, const Tensor &, double, OptionalSymIntArrayRef);
    static const auto found = operation<Signature>("fastdrop::backward");
    return found;
}

const auto &draw_operation() {
    using Signature =
        Tensor(const Tensor &, const Tensor &, int64_t, double, OptionalSymIntArrayRef);
    static const auto found = operation<Signature>("fastdrop::draw");
    return found;
}

/* ---- Gradients ---- */

/* A noise shape that outlives the call. */
using NoiseShape = std::optional<c10::SymDimVector>;

NoiseShape owned(OptionalSymIntArrayRef noise_shape) {
    return noise_shape ? NoiseShape(std::in_place, noise_shape->begin(), noise_shape->end())
                       : std::nullopt;
}

OptionalSymIntArrayRef reference(const NoiseShape &noise_shape) {
    return noise_shape ? OptionalSymIntArrayRef(*noise_shape) : std::nullopt;
}

/* The gradients for x, bias and residual, as far as the operation has them. */
struct DropoutBackward : Node {
    std::string name() const override { return "FastdropBackward"; }

    variable_list apply(variable_list &&gradients) override {
        std::lock_guard<std::mutex> lock(mutex_);
        variable_list results(num_outputs());
        const Tensor dy = gradients[0];
        if (!dy.defined())
            return results;
        Tensor dx;
        if (task_should_compute_output(0) || (num_outputs() > 1 && task_should_compute_output(1)))
            dx = backward_operation().call(dy, bits.unpack(), scale, reference(noise_shape));
        if (task_should_compute_output(0))
            results[0] = dx;
        if (num_outputs() > 1 && task_should_compute_output(1))
            results[1] = at::sum_to(dx, bias_shape);
        if (num_outputs() > 2 && task_should_compute_output(2))
            results[2] = at::sum_to(dy, residual_shape);
        return results;
    }

    void release_variables() override {
        std::lock_guard<std::mutex> lock(mutex_);
        bits.reset_data();
    }

    torch::autograd::SavedVariable bits;
    double scale;
    NoiseShape noise_shape;
    c10::SymDimVector bias_shape, residual_shape;
};

/* Newer versions of PyTorch count references in the node, older ones beside it. */
template <typename New> auto new_node() {
    using Pointer = std::decay_t<decltype(std::declval<Tensor>().grad_fn())>;
    if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>)
        return std::shared_ptr<New>(new New(), [](auto *node) { deleteNode(node); });
    else
        return c10::make_intrusive<New>();
}

using DropoutPointer = decltype(new_node<DropoutBackward>());

/* A node for an operation on x, or nullptr if no gradient is wanted. */
template <typename... Operands>
DropoutPointer node_for(double scale, OptionalSymIntArrayRef noise_shape,
                        const Operands &...operands) {
    DropoutPointer node;
    if (torch::autograd::compute_requires_grad(operands...)) {
        node = new_node<DropoutBackward>();
        node->set_next_edges(torch::autograd::collect_next_edges(operands...));
        node->scale = scale;
        node->noise_shape = owned(noise_shape);
    }
    return node;
}

void save_bits(const DropoutPointer &node, const Tensor &bits) {
    node->bits = torch::autograd::SavedVariable(bits, /*is_output=*/false);
}

Tensor tangent_of(const Tensor &x) { return x.defined() ? x._fw_grad(/*level=*/0) : Tensor(); }

/* `forward` with ReLU decides on each element, and so its bits have x's shape. */
OptionalSymIntArrayRef shape_of_bits(OptionalSymIntArrayRef noise_shape, bool relu) {
    return relu ? OptionalSymIntArrayRef() : noise_shape;
}

TensorAndBits forward_autograd(DispatchKeySet keys, const Tensor &x, const Tensor &seed, double p,
                               OptionalSymIntArrayRef noise_shape, bool relu) {
    const OptionalSymIntArrayRef of_bits = shape_of_bits(noise_shape, relu);
    DropoutPointer node = node_for(inverted(p), of_bits, x);
    TensorAndBits result;
    {
        at::AutoDispatchBelowADInplaceOrView guard;
        result = forward_operation().redispatch(keys & c10::after_autograd_keyset, x, seed, p,
                                                noise_shape, relu);
    }
    auto &[y, bits] = result;
    if (node) {
        torch::autograd::set_history(y, node);
        save_bits(node, bits);
    }
    if (const Tensor tangent = tangent_of(x); tangent.defined())
        y._set_fw_grad(backward_operation().call(tangent, bits, inverted(p), of_bits), 0, false);
    return result;
}

TensorAndBits bias_forward_autograd(DispatchKeySet keys, const Tensor &x, const Optional &bias,
                                    const Optional &residual, const Tensor &seed, double p,
                                    OptionalSymIntArrayRef noise_shape, double scale) {
    const Tensor b = bias.value_or(Tensor()), r = residual.value_or(Tensor());
    DropoutPointer node = node_for(scale, noise_shape, x, b, r);
    TensorAndBits result;
    {
        at::AutoDispatchBelowADInplaceOrView guard;
        result = bias_forward_operation().redispatch(keys & c10::after_autograd_keyset, x, bias,
                                                     residual, seed, p, noise_shape, scale);
    }
    auto &[y, bits] = result;
    if (node) {
        torch::autograd::set_history(y, node);
        save_bits(node, bits);
        if (bias)
            node->bias_shape.assign(b.sym_sizes().begin(), b.sym_sizes().end());
        if (residual)
            node->residual_shape.assign(r.sym_sizes().begin(), r.sym_sizes().end());
    }
    Tensor tangent = tangent_of(x);
    if (const Tensor of_bias = tangent_of(b); of_bias.defined())
        tangent = at::add(tangent.defined() ? tangent : at::zeros_like(x), of_bias);
    if (tangent.defined())
        tangent = backward_operation().call(tangent, bits, scale, noise_shape);
    if (const Tensor of_residual = tangent_of(r); of_residual.defined())
        tangent = at::add(tangent.defined() ? tangent : at::zeros_like(x), of_residual);
    if (tangent.defined())
        y._set_fw_grad(tangent, 0, false);
    return result;
}

Tensor backward_autograd(DispatchKeySet keys, const Tensor &dy, const Tensor &bits, double scale,
                         OptionalSymIntArrayRef noise_shape) {
    DropoutPointer node = node_for(scale, noise_shape, dy);
    Tensor dx;
    {
        at::AutoDispatchBelowADInplaceOrView guard;
        dx = backward_operation().redispatch(keys & c10::after_autograd_keyset, dy, bits, scale,
                                             noise_shape);
    }
    if (node) {
        torch::autograd::set_history(dx, node);
        save_bits(node, bits);
    }
    if (const Tensor tangent = tangent_of(dy); tangent.defined())
        dx._set_fw_grad(backward_operation().call(tangent, bits, scale, noise_shape), 0, false);
    return dx;
}

struct DrawBackward : Node {
    std::string name() const override { return "FastdropDrawBackward"; }

    variable_list apply(variable_list &&gradients) override {
        std::lock_guard<std::mutex> lock(mutex_);
        const Tensor dy = gradients[0];
        if (!dy.defined() || kind == GAUSSIAN_NOISE)
            return {dy};
        return {draw_operation().call(dy, seed.unpack(), derivative_of(kind), parameter,
                                      reference(noise_shape))};
    }

    void release_variables() override {
        std::lock_guard<std::mutex> lock(mutex_);
        seed.reset_data();
    }

    torch::autograd::SavedVariable seed;
    int64_t kind;
    double parameter;
    NoiseShape noise_shape;
};

Tensor draw_autograd(DispatchKeySet keys, const Tensor &x, const Tensor &seed, int64_t kind,
                     double parameter, OptionalSymIntArrayRef noise_shape) {
    Tensor y;
    {
        at::AutoDispatchBelowADInplaceOrView guard;
        y = draw_operation().redispatch(keys & c10::after_autograd_keyset, x, seed, kind, parameter,
                                        noise_shape);
    }
    if (kind == BERNOULLI)
        return y;
    if (torch::autograd::compute_requires_grad(x)) {
        auto node = new_node<DrawBackward>();
        node->set_next_edges(torch::autograd::collect_next_edges(x));
        node->seed = torch::autograd::SavedVariable(seed, /*is_output=*/false);
        node->kind = kind;
        node->parameter = parameter;
        node->noise_shape = owned(noise_shape);
        torch::autograd::set_history(y, node);
    }
    if (const Tensor tangent = tangent_of(x); tangent.defined())
        y._set_fw_grad(
            kind == GAUSSIAN_NOISE
                ? tangent.clone()
                : draw_operation().call(tangent, seed, derivative_of(kind), parameter, noise_shape),
            0, false);
    return y;
}

/* ---- What users call: composite operations ---- */

/* A NaN is refused, too. */
void check_probability(double p) {
    TORCH_CHECK_VALUE(p >= 0 && p <= 1, "dropout probability has to be between 0 and 1, but got ",
                      p);
}

/* Whether the kernels take the tensor. PyTorch's own functions take all others. */
bool is_ours(const Tensor &x) {
    return x.device().is_cpu() && x.layout() == at::kStrided && kind_of(x.scalar_type()) >= 0
           && !x.is_nested();
}

/* Whether the tensor has data and nothing but PyTorch's eager autograd watches the call. */
bool is_plain(const Tensor &x) {
    constexpr DispatchKeySet watching(
        {DispatchKey::Python, DispatchKey::PythonTLSSnapshot, DispatchKey::PythonDispatcher,
         DispatchKey::FuncTorchDynamicLayerFrontMode, DispatchKey::FuncTorchBatched,
         DispatchKey::FuncTorchGradWrapper, DispatchKey::FuncTorchVmapMode,
         DispatchKey::Functionalize, DispatchKey::Batched, DispatchKey::Conjugate,
         DispatchKey::Negative, DispatchKey::ZeroTensor});
    const auto included = c10::impl::tls_local_dispatch_key_set().included_;
    return ((x.key_set() | included) & watching).empty();
}

/* A random seed and step from PyTorch's generator, or the seed that the caller gave. */
Tensor seed_from(const std::optional<Generator> &generator, const Optional &seed) {
    return seed ? *seed
                : at::randint(std::numeric_limits<int64_t>::max(), {2}, generator,
                              at::TensorOptions(at::kLong).device(at::kCPU));
}

void check_no_seed(const std::optional<Generator> &generator, const Optional &seed,
                   const Tensor &x) {
    TORCH_CHECK_TYPE(!seed && !generator,
                     "`seed` and `generator` need a dense CPU tensor of dtype float16, bfloat16, "
                     "float32 or float64, got ",
                     x.toString());
}

/* The noise shape of dropout that drops whole channels: (N, C, 1, ...). */
c10::SymDimVector channels_of(const Tensor &x) {
    TORCH_CHECK(x.dim() >= 2, "Feature dropout requires at least 2 dimensions in the input");
    c10::SymDimVector shape((size_t)x.dim(), 1);
    shape[0] = x.sym_size(0);
    shape[1] = x.sym_size(1);
    return shape;
}

Tensor dropped(const Tensor &x, double p, OptionalSymIntArrayRef noise_shape,
               const std::optional<Generator> &generator, const Optional &seed) {
    return std::get<0>(
        forward_operation().call(x, seed_from(generator, seed), p, noise_shape, false));
}

/* Raises PyTorch's errors for a tensor that must not change, before a seed is taken. */
void check_in_place(const Tensor &x) {
    if (!is_plain(x) || !is_ours(x))
        return;
    torch::autograd::check_inplace(x, torch::autograd::compute_requires_grad(x));
    at::assert_no_internal_overlap(x);
}

/* Drops in place, with the gradient of the whole: PyTorch sees x change once. */
Tensor &drop_in_place(Tensor &x, double p, OptionalSymIntArrayRef noise_shape,
                      const std::optional<Generator> &generator, const Optional &seed) {
    if (!is_plain(x))
        return x.copy_(dropped(x, p, noise_shape, generator, seed));
    check_in_place(x);
    DropoutPointer node = node_for(inverted(p), noise_shape, x);
    c10::DimVector sizes;
    if (noise_shape)
        for (const SymInt &size : *noise_shape)
            sizes.push_back(size.expect_int());
    const Tensor words = seed_from(generator, seed);
    const Tensor bits =
        run_forward(x, x, words, p, noise_shape ? OptionalIntArrayRef(sizes) : std::nullopt, false);
    torch::autograd::increment_version(x);
    if (node) {
        torch::autograd::rebase_history(x, node);
        save_bits(node, bits);
    }
    if (const Tensor tangent = tangent_of(x); tangent.defined())
        tangent.copy_(backward_operation().call(tangent, bits, inverted(p), noise_shape));
    return x;
}

Tensor alpha_dropped(const Tensor &x, double p, OptionalSymIntArrayRef noise_shape,
                     const std::optional<Generator> &generator, const Optional &seed) {
    if (p == 1)
        return dropped(x, p, noise_shape, generator, seed);
    const double a = alpha_scale(p);
    return std::get<0>(
        bias_forward_operation().call(x, one_number(alpha, x), one_number(-alpha * a * (1 - p), x),
                                      seed_from(generator, seed), p, noise_shape, a));
}

#define RANDOM const std::optional<Generator> &generator, const Optional &seed

Tensor dropout(const Tensor &x, double p, bool train, RANDOM) {
    check_probability(p);
    if (!is_ours(x)) {
        check_no_seed(generator, seed, x);
        return at::native::dropout(x, p, train);
    }
    return train && p > 0 ? dropped(x, p, std::nullopt, generator, seed) : x;
}

/* Drops each element with its own probability. The gradient takes the mask and p for constants. */
Tensor dropout_by_rates(const Tensor &x, const Tensor &p, bool train, RANDOM) {
    TORCH_CHECK_TYPE(is_ours(x) && is_ours(p),
                     "A tensor of probabilities and its input must be dense CPU tensors of dtype "
                     "float16, bfloat16, float32 or float64, got `p` of ",
                     p.toString(), " and an input of ", x.toString());
    TORCH_CHECK_VALUE(
        at::is_expandable_to(p.sym_sizes(), x.sym_sizes()),
        "`p` must be a number or a tensor that can be broadcast to the input's shape ",
        x.sym_sizes(), ", got shape ", p.sym_sizes());
    if (is_plain(p))
        check_probabilities(p);
    if (!train)
        return x;
    const Tensor rates = p.detach().to(at::promote_types(p.scalar_type(), at::kFloat));
    Tensor kept = draw_operation()
                      .call(rates.expand_symint(x.sym_sizes()), seed_from(generator, seed),
                            BERNOULLI, 0, std::nullopt)
                      .ne(0);
    /* The first operand of `where` gives the result its memory format: that of x. */
    if (!x.is_contiguous())
        kept = at::logical_and(at::ones_like(x, x.options().dtype(at::kBool)), kept);
    const Tensor keep = at::rsub(rates.to(at::kDouble), 1);
    /* Not infinite at p = 1, since the gradient would be NaN. */
    const Tensor scale = at::where(keep.gt(0), keep.reciprocal(), 0);
    const auto wide = at::promote_types(x.scalar_type(), at::kFloat);
    const Tensor y = at::mul(x.to(wide), scale.to(wide));
    return at::where(kept, y.to(x.scalar_type()), at::zeros({}, x.options()));
}

Tensor &dropout_by_rates_(Tensor &x, const Tensor &p, bool train, RANDOM) {
    if (train)
        check_in_place(x);
    const Tensor y = dropout_by_rates(x, p, train, generator, seed);
    return train ? x.copy_(y) : x;
}

Tensor &dropout_(Tensor &x, double p, bool train, RANDOM) {
    check_probability(p);
    if (!is_ours(x)) {
        check_no_seed(generator, seed, x);
        return at::native::dropout_(x, p, train);
    }
    return train && p > 0 ? drop_in_place(x, p, std::nullopt, generator, seed) : x;
}

Tensor feature_dropout(const Tensor &x, double p, bool train, RANDOM) {
    check_probability(p);
    if (!is_ours(x)) {
        check_no_seed(generator, seed, x);
        return at::native::feature_dropout(x, p, train);
    }
    return train && p > 0 ? dropped(x, p, channels_of(x), generator, seed) : x;
}

Tensor &feature_dropout_(Tensor &x, double p, bool train, RANDOM) {
    check_probability(p);
    if (!is_ours(x)) {
        check_no_seed(generator, seed, x);
        return at::native::feature_dropout_(x, p, train);
    }
    return train && p > 0 ? drop_in_place(x, p, channels_of(x), generator, seed) : x;
}

Tensor alpha_dropout(const Tensor &x, double p, bool train, RANDOM) {
    check_probability(p);
    if (!is_ours(x)) {
        check_no_seed(generator, seed, x);
        return at::native::alpha_dropout(x, p, train);
    }
    return train && p > 0 ? alpha_dropped(x, p, std::nullopt, generator, seed) : x;
}

Tensor &alpha_dropout_(Tensor &x, double p, bool train, RANDOM) {
    check_probability(p);
    if (!train || p == 0)
        return x;
    check_in_place(x);
    return x.copy_(alpha_dropout(x, p, train, generator, seed));
}

Tensor feature_alpha_dropout(const Tensor &x, double p, bool train, RANDOM) {
    check_probability(p);
    if (!is_ours(x)) {
        check_no_seed(generator, seed, x);
        return at::native::feature_alpha_dropout(x, p, train);
    }
    return train && p > 0 ? alpha_dropped(x, p, channels_of(x), generator, seed) : x;
}

Tensor &feature_alpha_dropout_(Tensor &x, double p, bool train, RANDOM) {
    check_probability(p);
    if (!train || p == 0)
        return x;
    check_in_place(x);
    return x.copy_(feature_alpha_dropout(x, p, train, generator, seed));
}

Tensor relu_dropout(const Tensor &x, double p, bool train, RANDOM) {
    check_probability(p);
    if (!train || !is_ours(x))
        return dropout(at::relu(x), p, train, generator, seed);
    return std::get<0>(
        forward_operation().call(x, seed_from(generator, seed), p, std::nullopt, true));
}

Tensor noised(const Tensor &x, Kind kind, double parameter, bool train,
              const std::optional<Generator> &generator, const Optional &seed) {
    if (!train)
        return x;
    TORCH_CHECK_TYPE(is_ours(x),
                     "Noise needs a dense CPU tensor of dtype float16, bfloat16, float32 or "
                     "float64, got ",
                     x.toString());
    return parameter > 0
               ? draw_operation().call(x, seed_from(generator, seed), kind, parameter, std::nullopt)
               : x;
}

Tensor gaussian_dropout(const Tensor &x, double p, bool train, RANDOM) {
    TORCH_CHECK_VALUE(p >= 0 && p < 1,
                      "dropout probability has to be at least 0 and, for Gaussian dropout, below "
                      "1, but got ",
                      p);
    return noised(x, GAUSSIAN_DROPOUT, p, train, generator, seed);
}

Tensor &gaussian_dropout_(Tensor &x, double p, bool train, RANDOM) {
    if (train && p > 0)
        check_in_place(x);
    const Tensor y = gaussian_dropout(x, p, train, generator, seed);
    return train && p > 0 ? x.copy_(y) : x;
}

Tensor gaussian_noise(const Tensor &x, double stddev, bool train, RANDOM) {
    TORCH_CHECK_VALUE(stddev >= 0 && std::isfinite(stddev),
                      "standard deviation has to be finite and at least 0, but got ", stddev);
    return noised(x, GAUSSIAN_NOISE, stddev, train, generator, seed);
}

Tensor &gaussian_noise_(Tensor &x, double stddev, bool train, RANDOM) {
    if (train && stddev > 0)
        check_in_place(x);
    const Tensor y = gaussian_noise(x, stddev, train, generator, seed);
    return train && stddev > 0 ? x.copy_(y) : x;
}

Tensor bias_dropout_add(const Tensor &x, const Optional &bias, const Optional &residual, double p,
                        bool train, RANDOM) {
    check_probability(p);
    const auto is_operand = [&x](const Optional &operand) {
        return !operand || (is_ours(*operand) && operand->scalar_type() == x.scalar_type());
    };
    const bool fused =
        train && is_ours(x) && is_operand(bias) && is_operand(residual)
        && (!bias || (bias->dim() == 1 && x.dim() && bias->sym_size(0) == x.sym_size(-1)))
        && (!residual || residual->sym_sizes() == x.sym_sizes());
    if (!fused) {
        Tensor sum = dropout(bias ? at::add(x, *bias) : x, p, train, generator, seed);
        return residual ? at::add(*residual, sum) : sum;
    }
    return std::get<0>(bias_forward_operation().call(x, bias, residual, seed_from(generator, seed),
                                                     p, std::nullopt, inverted(p)));
}

/* ---- PyTorch's own names, while they are switched to ours ---- */

std::atomic<bool> switched_everywhere{false};
thread_local int switched_here = 0; /* 1: on, -1: off, 0: as everywhere */

bool is_switched() { return switched_here ? switched_here > 0 : switched_everywhere.load(); }

/* What PyTorch runs without this file: a trace prefers its decomposition in Python. */
Tensor pytorch_dropout(const Tensor &x, double p, bool train) {
    if (!c10::impl::tls_is_dispatch_key_included(DispatchKey::PythonDispatcher))
        return at::native::dropout(x, p, train);
    return train && p != 0 ? std::get<0>(at::native_dropout(x, p, train)) : x;
}

template <auto ours, auto theirs> Tensor switched(const Tensor &x, double p, bool train) {
    return is_switched() ? ours(x, p, train, std::nullopt, std::nullopt) : theirs(x, p, train);
}

template <auto ours, auto theirs> Tensor &switched_(Tensor &x, double p, bool train) {
    return is_switched() ? ours(x, p, train, std::nullopt, std::nullopt) : theirs(x, p, train);
}

void register_switch(DispatchKey key) {
    /* It stays: a thread may be in one of these functions at any time. */
    static std::vector<torch::Library> libraries;
    torch::Library &m =
        libraries.emplace_back(torch::Library::IMPL, "aten", key, __FILE__, (uint32_t)__LINE__);
    m.impl("dropout", switched<dropout, pytorch_dropout>);
    m.impl("dropout_", switched_<dropout_, at::native::dropout_>);
    m.impl("feature_dropout", switched<feature_dropout, at::native::feature_dropout>);
    m.impl("feature_dropout_", switched_<feature_dropout_, at::native::feature_dropout_>);
    m.impl("alpha_dropout", switched<alpha_dropout, at::native::alpha_dropout>);
    m.impl("alpha_dropout_", switched_<alpha_dropout_, at::native::alpha_dropout_>);
    m.impl("feature_alpha_dropout",
           switched<feature_alpha_dropout, at::native::feature_alpha_dropout>);
    m.impl("feature_alpha_dropout_",
           switched_<feature_alpha_dropout_, at::native::feature_alpha_dropout_>);
}

} // namespace

/* ---- For library.py ---- */

#define EXPORTED extern "C" __attribute__((visibility("default")))

/* Returns 0, or the version of the interface that this file needs if `api` is older. */
EXPORTED int fastdrop_use(const fastdrop_api *api) {
    if (!fastdrop_serves(api))
        return FASTDROP_API_VERSION;
    fastdrop = api;
    return 0;
}

EXPORTED void fastdrop_switch_everywhere(int on) {
    static std::once_flag registered;
    std::call_once(registered, [] {
        register_switch(DispatchKey::AutogradCPU);
        register_switch(DispatchKey::CPU); /* in inference mode */
    });
    switched_everywhere = on;
}

/* Returns the value before. */
EXPORTED int fastdrop_switch_here(int value) {
    fastdrop_switch_everywhere(switched_everywhere);
    return std::exchange(switched_here, value);
}

#define COMMON "bool train=True, *, Generator? generator=None, Tensor? seed=None)"
#define SIGNATURE "float p=0.5, " COMMON
#define NOISE "float stddev, " COMMON

TORCH_LIBRARY(fastdrop, m) {
    m.def("forward(Tensor x, Tensor seed, float p, SymInt[]? noise_shape=None, bool relu=False)"
          " -> (Tensor y, Tensor bits)");
    m.def("bias_forward(Tensor x, Tensor? bias, Tensor? residual, Tensor seed, float p,"
          " SymInt[]? noise_shape, float scale) -> (Tensor y, Tensor bits)");
    m.def("backward(Tensor dy, Tensor bits, float scale, SymInt[]? noise_shape=None) -> Tensor");
    m.def("draw(Tensor x, Tensor seed, int kind, float parameter, SymInt[]? noise_shape=None)"
          " -> Tensor");
    /* TorchScript must not merge two calls, nor take the result for a new tensor. */
    const auto define = [&m](const std::string &schema) {
        m.def(torch::schema(schema.c_str(), c10::AliasAnalysisKind::CONSERVATIVE),
              {at::Tag::nondeterministic_seeded});
    };
    for (const std::string name : {"dropout", "feature_dropout", "alpha_dropout",
                                   "feature_alpha_dropout", "gaussian_dropout"}) {
        define(name + "(Tensor input, " SIGNATURE " -> Tensor");
        m.def((name + "_(Tensor(a!) input, " SIGNATURE " -> Tensor(a!)").c_str());
    }
    define("dropout_by_rates(Tensor input, Tensor p, " COMMON " -> Tensor");
    m.def("dropout_by_rates_(Tensor(a!) input, Tensor p, " COMMON " -> Tensor(a!)");
    define("gaussian_noise(Tensor input, " NOISE " -> Tensor");
    m.def("gaussian_noise_(Tensor(a!) input, " NOISE " -> Tensor(a!)");
    define("relu_dropout(Tensor input, " SIGNATURE " -> Tensor");
    define("bias_dropout_add(Tensor input, Tensor? bias, Tensor? residual, " SIGNATURE
           " -> Tensor");
}

TORCH_LIBRARY_IMPL(fastdrop, CPU, m) {
    m.impl("forward", forward_cpu);
    m.impl("bias_forward", bias_forward_cpu);
    m.impl("backward", backward_cpu);
    m.impl("draw", draw_cpu);
}

TORCH_LIBRARY_IMPL(fastdrop, Meta, m) {
    m.impl("forward", forward_meta);
    m.impl("bias_forward", bias_forward_meta);
    m.impl("backward", backward_meta);
    m.impl("draw", draw_meta);
}

TORCH_LIBRARY_IMPL(fastdrop, Autograd, m) {
    m.impl("forward", forward_autograd);
    m.impl("bias_forward", bias_forward_autograd);
    m.impl("backward", backward_autograd);
    m.impl("draw", draw_autograd);
}

void register_composites(torch::Library &m) {
    m.impl("dropout", dropout);
    m.impl("dropout_", dropout_);
    m.impl("dropout_by_rates", dropout_by_rates);
    m.impl("dropout_by_rates_", dropout_by_rates_);
    m.impl("feature_dropout", feature_dropout);
    m.impl("feature_dropout_", feature_dropout_);
    m.impl("alpha_dropout", alpha_dropout);
    m.impl("alpha_dropout_", alpha_dropout_);
    m.impl("feature_alpha_dropout", feature_alpha_dropout);
    m.impl("feature_alpha_dropout_", feature_alpha_dropout_);
    m.impl("gaussian_dropout", gaussian_dropout);
    m.impl("gaussian_dropout_", gaussian_dropout_);
    m.impl("gaussian_noise", gaussian_noise);
    m.impl("gaussian_noise_", gaussian_noise_);
    m.impl("relu_dropout", relu_dropout);
    m.impl("bias_dropout_add", bias_dropout_add);
}

TORCH_LIBRARY_IMPL(fastdrop, CompositeImplicitAutograd, m) { register_composites(m); }

/* Without this, vmap would call the operation for each sample, with a seed of its own. */
TORCH_LIBRARY_IMPL(fastdrop, FuncTorchBatched, m) { register_composites(m); }

/* An input that is not batched needs masks of its own, too. */
TORCH_LIBRARY_IMPL(fastdrop, FuncTorchVmapMode, m) { register_composites(m); }
