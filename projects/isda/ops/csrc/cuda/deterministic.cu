#include "launch.cuh"

template void isda::find_bins<isda::Type::kDouble>(const Problem&, const Sorting&, void*);
template void isda::collect_grads<isda::Type::kDouble>(const Problem&, const Sorting&, void*);
template void isda::find_bins<isda::Type::kFloat>(const Problem&, const Sorting&, void*);
template void isda::collect_grads<isda::Type::kFloat>(const Problem&, const Sorting&, void*);
template void isda::find_bins<isda::Type::kBFloat16>(const Problem&, const Sorting&, void*);
template void isda::collect_grads<isda::Type::kBFloat16>(const Problem&, const Sorting&, void*);
template void isda::find_bins<isda::Type::kHalf>(const Problem&, const Sorting&, void*);
template void isda::collect_grads<isda::Type::kHalf>(const Problem&, const Sorting&, void*);
