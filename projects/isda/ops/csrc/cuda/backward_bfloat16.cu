#include "launch.cuh"

template void isda::backward<isda::Type::kBFloat16>(const Problem&, void*);
