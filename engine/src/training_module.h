// The functions of training that the Python module has.

#pragma once

#include <nanobind/nanobind.h>

namespace skipnets {

void add_training(nanobind::module_& m);
void add_stem_and_transition(nanobind::module_& m);

}  // namespace skipnets
