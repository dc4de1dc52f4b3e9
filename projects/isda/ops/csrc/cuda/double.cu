#include "launch.cuh"

template void isda::forward<isda::Type::kDouble>(const Problem&, void*);
template void isda::backward<isda::Type::kDouble>(const Problem&, void*);
