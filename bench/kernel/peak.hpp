#pragma once

namespace bsfa::bench {

struct Peak {  // GFLOP/s of one core, multiply-adds in registers; 0: not in this machine
  double fp32 = 0;
  double bf16 = 0;
};
Peak measure_peak();

}  // namespace bsfa::bench
