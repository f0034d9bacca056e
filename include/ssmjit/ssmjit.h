// ssmjit: decode kernels for state-space models, from a description to a tuned launch. In reading order:
#pragma once

#include <ssmjit/bundle.h>       // a model's kernels as a folder
#include <ssmjit/cubin.h>        // 4 its machine code
#include <ssmjit/description.h>  // 1 what to compute
#include <ssmjit/device.h>
#include <ssmjit/error.h>
#include <ssmjit/expression.h>  // maths of a step, as data
#include <ssmjit/kernel.h>      // 8 the loaded kernel
#include <ssmjit/log.h>
#include <ssmjit/measurement.h>  // 5 what it costs (see tune.h, which measures)
#include <ssmjit/plan.h>         // 2 how
#include <ssmjit/prepare.h>      // A from A_log, once
#include <ssmjit/ring.h>         // slots of a ring between its steps
#include <ssmjit/session.h>      // all kernels of a model, prepared at once
#include <ssmjit/slots.h>        // output slots of verify steps, slots copied
#include <ssmjit/source.h>       // 3 the CUDA C++ text
#include <ssmjit/table.h>        // 6 and 7: tables, and the choice from them
