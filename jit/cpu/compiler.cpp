// The only file that knows LLVM and clang: an emitted source becomes machine code of this process. The source and the
// device operations' CPU bodies are files of a file system in memory, so nothing is read from disk.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include <pthread.h>
#include <unistd.h>

#include <clang/Basic/Diagnostic.h>
#include <clang/Basic/DiagnosticOptions.h>
#include <clang/Basic/SourceManager.h>
#include <clang/CodeGen/CodeGenAction.h>
#include <clang/Frontend/CompilerInstance.h>
#include <clang/Frontend/CompilerInvocation.h>
#include <clang/Frontend/FrontendAction.h>
#include <clang/Lex/Preprocessor.h>
#include <llvm/Analysis/CFG.h>
#include <llvm/Analysis/ValueTracking.h>
#include <llvm/Demangle/Demangle.h>
#include <llvm/ExecutionEngine/JITEventListener.h>
#include <llvm/ExecutionEngine/Orc/CompileUtils.h>
#include <llvm/ExecutionEngine/Orc/JITTargetMachineBuilder.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/RTDyldObjectLinkingLayer.h>
#include <llvm/ExecutionEngine/SectionMemoryManager.h>
#include <llvm/IR/DebugInfo.h>
#include <llvm/IR/DiagnosticHandler.h>
#include <llvm/IR/DiagnosticInfo.h>
#include <llvm/IR/DiagnosticPrinter.h>
#include <llvm/IR/IRBuilder.h>
#include <llvm/IR/LLVMContext.h>
#include <llvm/IR/Module.h>
#include <llvm/IR/ReplaceConstant.h>
#include <llvm/Passes/PassBuilder.h>
#include <llvm/Passes/PassPlugin.h>
#include <llvm/Support/ErrorHandling.h>
#include <llvm/Support/TargetSelect.h>
#include <llvm/Support/VirtualFileSystem.h>
#include <llvm/TargetParser/Host.h>
#include <llvm/Transforms/Utils/BasicBlockUtils.h>

#include "codegen/embedded_templates.h"
#include "codegen/fail.h"
#include "jit/cpu/code.h"
#include "jit/cpu/runtime.h"

#ifdef SSMJIT_STATIC_LLVM
// clang's archives ask for the Polly that Debian's LLVM is built with. It is not linked: no pass of it is ever run.
llvm::PassPluginLibraryInfo getPollyPluginInfo();
llvm::PassPluginLibraryInfo getPollyPluginInfo() {
  return {LLVM_PLUGIN_API_VERSION, "Polly", "", [](auto&) {}};
}
#endif

namespace ssmjit::cpu {
namespace {

constexpr std::string_view kBodies = "device/cpu/";  // below templates/
constexpr std::string_view kCallPrefix = "ssmjit_cpu_call_";
constexpr std::string_view kBytesPrefix = "ssmjit_cpu_bytes_";
constexpr const char* kConstants = "ssmjit_cpu_constants";

// An error inside LLVM would end the process; it becomes one of ours.
void fatal(void*, const char* reason, bool) { fail(ErrorKind::machine, "CPU executor: LLVM gave up: {}", reason); }

void initialise() {
  static const bool once = [] {
    llvm::InitializeNativeTarget();
    llvm::InitializeNativeTargetAsmPrinter();
    llvm::install_fatal_error_handler(fatal);
    return true;
  }();
  static_cast<void>(once);
}

// ---- front end ----

// The first error, at its line; the rest is counted.
class FirstError : public clang::DiagnosticConsumer {
 public:
  explicit FirstError(std::string file) : file_(std::move(file)) {}
  void HandleDiagnostic(clang::DiagnosticsEngine::Level level, const clang::Diagnostic& info) override {
    DiagnosticConsumer::HandleDiagnostic(level, info);
    if (level < clang::DiagnosticsEngine::Error || ++errors_ > 1) return;
    llvm::SmallString<256> text;
    info.FormatDiagnostic(text);
    sentence_ = text.str().str();
    if (info.hasSourceManager() && info.getLocation().isValid()) {
      const clang::PresumedLoc at = info.getSourceManager().getPresumedLoc(info.getLocation());
      if (at.isValid())
        sentence_ = fmt::format("{}:{}: {}", std::filesystem::path(at.getFilename()).filename().string(), at.getLine(),
                                sentence_);
    }
  }
  std::string text() const {
    if (sentence_.empty()) return file_ + ": clang gave no reason";
    return errors_ > 1 ? fmt::format("{} (and {} more errors)", sentence_, errors_ - 1) : sentence_;
  }

 private:
  std::string file_, sentence_;
  int errors_ = 0;
};

// Calls a kernel with its parameters taken from memory, each at its alignment: the host's way to pass a struct is the
// compiler's business, not ours.
constexpr std::string_view kCallers = R"(
template <class... A> __host__ __device__ constexpr u64 ssmjit_cpu_offset(int which) {
  constexpr u64 sizes[] = {sizeof(A)..., 0}, alignments[] = {alignof(A)..., 1};
  u64 at = 0;
  for (int i = 0; i < which; ++i) at = (at + alignments[i] - 1) / alignments[i] * alignments[i] + sizes[i];
  return which < static_cast<int>(sizeof...(A)) ? (at + alignments[which] - 1) / alignments[which] * alignments[which] : at;
}
template <int kWhich, class... A> constexpr u64 kSsmjitCpuOffset = ssmjit_cpu_offset<A...>(kWhich);
template <class T, T... I> struct SsmjitCpuIndices {};
template <class... A, int... I>
SSMJIT_DEVICE void ssmjit_cpu_apply(void (*kernel)(A...), const u8* args, SsmjitCpuIndices<int, I...>) {
  kernel(*reinterpret_cast<const A*>(args + kSsmjitCpuOffset<I, A...>)...);
}
template <class... A> SSMJIT_DEVICE void ssmjit_cpu_apply(void (*kernel)(A...), const u8* args) {
  ssmjit_cpu_apply(kernel, args, __make_integer_seq<SsmjitCpuIndices, int, static_cast<int>(sizeof...(A))>());
}
template <class... A> SSMJIT_DEVICE u64 ssmjit_cpu_size(void (*)(A...)) {
  return kSsmjitCpuOffset<static_cast<int>(sizeof...(A)), A...>;
}
)";

// For gdb, and unknown to the kernel, which stands before it: the thread that runs, by CUDA's names.
constexpr std::string_view kHere = R"(
struct SsmjitCpuIndex { u32 x; };
struct SsmjitCpuIndex2 { u32 x, y; };
extern "C" {
__device__ SsmjitCpuIndex threadIdx, blockDim;
__device__ SsmjitCpuIndex2 blockIdx, gridDim;
}
)";

constexpr std::string_view kHereNames[] = {"threadIdx", "blockDim", "blockIdx", "gridDim"};

struct Files {
  std::string folder;  // absolute
  std::string kernel, main;
  std::map<std::string, std::string> text;  // by absolute path
};

Files files_of(const Source& source, const CodeOptions& options) {
  Files f;
  f.folder = "/ssmjit";
  if (options.debug) {
    namespace fs = std::filesystem;
    fs::path folder = options.debug_folder.empty()
                          ? fs::temp_directory_path() / fmt::format("ssmjit-debug-{}-{}", getuid(), source.digest)
                          : fs::path(options.debug_folder);
    f.folder = fs::absolute(folder).lexically_normal().string();
  }
  f.kernel = f.folder + "/" + std::filesystem::path(options.file).filename().string();
  f.main = f.folder + "/ssmjit_cpu_main.cu";
  std::string main;
  for (const auto& [name, content] : embedded_templates()) {
    if (!name.starts_with(kBodies)) continue;
    f.text[f.folder + "/" + std::string(name)] = std::string(content);
    main += fmt::format("#include \"{}\"\n", name);
  }
  // A function of the kernel is a frame of its own: gdb knows little of one that was inlined. The device operations
  // stay inlined, so that findings are at the line that called them.
  if (options.debug) main += "#undef __forceinline__\n#define __forceinline__ inline\n";
  main += fmt::format("#include \"{}\"\n", std::filesystem::path(f.kernel).filename().string());
  if (options.debug) main += kHere;
  main += kCallers;
  for (const Entry& e : source.entries) {
    main += fmt::format(
        "extern \"C\" __device__ void {0}{1}(const u8* args) {{ ssmjit_cpu_apply({1}, args); }}\n"
        "extern \"C\" __device__ u64 {2}{1}() {{ return ssmjit_cpu_size({1}); }}\n",
        kCallPrefix, e.name, kBytesPrefix);
  }
  f.text[f.kernel] = source.text;
  f.text[f.main] = std::move(main);
  return f;
}

// Where gdb finds them.
void write_to_disk(const Files& files) {
  for (const auto& [path, content] : files.text) {
    std::error_code code;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), code);
    std::ofstream out(path, std::ios::binary);
    out << content;
    if (!out.flush())
      fail(ErrorKind::machine, "{} can't be written, which gdb needs: set TMPDIR to another folder", path);
  }
}

// clang and LLVM follow the nesting of a source by recursion and end the process where the stack does. So they get a
// large one, and sources that could need more are refused: nesting costs tokens.
constexpr std::size_t kCompilerStack = std::size_t{1} << 30;
constexpr int kMostTokens = 400000, kMostStatementTokens = 20000;

class CountTokens : public clang::PreprocessorFrontendAction {
 public:
  explicit CountTokens(std::string file) : file_(std::move(file)) {}
  const std::string& refusal() const { return refusal_; }

 protected:
  void ExecuteAction() override {
    clang::Preprocessor& lexer = getCompilerInstance().getPreprocessor();
    lexer.EnterMainSourceFile();
    int all = 0, statement = 0;
    clang::Token token;
    for (lexer.Lex(token); !token.is(clang::tok::eof); lexer.Lex(token)) {
      statement = token.isOneOf(clang::tok::semi, clang::tok::l_brace, clang::tok::r_brace) ? 0 : statement + 1;
      ++all;
      if (all <= kMostTokens && statement <= kMostStatementTokens) continue;
      const clang::PresumedLoc at = getCompilerInstance().getSourceManager().getPresumedLoc(token.getLocation());
      refusal_ =
          fmt::format("{}:{}: {}", file_, at.isValid() ? at.getLine() : 0,
                      all > kMostTokens ? fmt::format("a source of more than {} tokens", kMostTokens)
                                        : fmt::format("a statement of more than {} tokens", kMostStatementTokens));
      return;
    }
  }

 private:
  std::string file_, refusal_;
};

// Does `action` on a thread with that stack.
template <class Action>
void on_large_stack(const Action& action) {
  struct Call {
    const Action& action;
    std::exception_ptr failure;
  } call{action, {}};
  const auto main = [](void* p) -> void* {
    Call& c = *static_cast<Call*>(p);
    try {
      c.action();
    } catch (...) {
      c.failure = std::current_exception();
    }
    return nullptr;
  };
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  const bool started = pthread_attr_setstacksize(&attributes, kCompilerStack) == 0 &&
                       pthread_create(&thread, &attributes, main, &call) == 0;
  pthread_attr_destroy(&attributes);
  if (!started)
    fail(ErrorKind::machine, "CPU executor: no thread with a stack of {} MiB of address space can be started",
         kCompilerStack >> 20);
  pthread_join(thread, nullptr);
  if (call.failure) std::rethrow_exception(call.failure);
}

std::unique_ptr<llvm::Module> front_end(const Files& files, const Source& source, const CodeOptions& options,
                                        llvm::LLVMContext& context) {
  auto memory = llvm::makeIntrusiveRefCnt<llvm::vfs::InMemoryFileSystem>();
  memory->setCurrentWorkingDirectory(files.folder);
  for (const auto& [path, content] : files.text)
    memory->addFile(path, 0, llvm::MemoryBuffer::getMemBuffer(content, path));

  std::vector<std::string> arguments{
      "-triple", llvm::sys::getProcessTriple(), "-target-cpu", llvm::sys::getHostCPUName().str(), "-x", "cuda",
      "-fcuda-is-device", "-emit-llvm-only", "-disable-llvm-passes", "-nostdsysteminc", "-nobuiltininc",
      "-ffreestanding", "-std=c++17", "-ffp-contract=off",
      // What CUDA's compilers take for granted: an endless loop stays one, integers
      // wrap, memory has no type.
      "-fno-finite-loops", "-fwrapv", "-relaxed-aliasing", "-mrelocation-model", "pic", "-pic-level", "2", "-w",
      "-ferror-limit", "20", "-DSSMJIT_CPU=1", "-I" + files.folder, "-fdebug-compilation-dir=" + files.folder,
      "-main-file-name", "ssmjit_cpu_main.cu", "-dwarf-version=4", fmt::format("-O{}", options.optimisation)};
  for (const auto& feature : llvm::sys::getHostCPUFeatures()) {
    arguments.push_back("-target-feature");
    arguments.push_back((feature.second ? "+" : "-") + feature.first().str());
  }
  if (options.debug) {
    arguments.push_back("-debug-info-kind=constructor");
    arguments.push_back("-debugger-tuning=gdb");
    arguments.push_back("-mframe-pointer=all");
  } else {
    arguments.push_back("-debug-info-kind=line-tables-only");
  }
  for (const std::string& option : source.options)
    if (option.starts_with("-D")) arguments.push_back(option);
  arguments.push_back(files.main);
  std::vector<const char*> argv;
  argv.reserve(arguments.size());
  for (const std::string& a : arguments) argv.push_back(a.c_str());

  FirstError errors(options.file);
  llvm::IntrusiveRefCntPtr<clang::DiagnosticsEngine> diagnostics(new clang::DiagnosticsEngine(
      new clang::DiagnosticIDs(), new clang::DiagnosticOptions(), &errors, /*ShouldOwnClient=*/false));
  const auto execute = [&](clang::FrontendAction& action, clang::DiagnosticsEngine& to) {
    auto invocation = std::make_shared<clang::CompilerInvocation>();
    if (!clang::CompilerInvocation::CreateFromArgs(*invocation, argv, to))
      fail(ErrorKind::internal, "CPU executor: clang refuses its arguments: {}", errors.text());
    clang::CompilerInstance compiler;
    compiler.setInvocation(invocation);
    compiler.setDiagnostics(&to);
    compiler.createFileManager(memory);
    compiler.setVerboseOutputStream(std::make_unique<llvm::raw_null_ostream>());
    return compiler.ExecuteAction(action);
  };
  // What is wrong with the source itself is the next action's to say.
  CountTokens count(options.file);
  llvm::IntrusiveRefCntPtr<clang::DiagnosticsEngine> nobody(new clang::DiagnosticsEngine(
      new clang::DiagnosticIDs(), new clang::DiagnosticOptions(), new clang::IgnoringDiagConsumer()));
  execute(count, *nobody);
  if (!count.refusal().empty())
    fail(ErrorKind::invalid, "{}, which the CPU executor's compiler does not take", count.refusal());
  clang::EmitLLVMOnlyAction action(&context);
  const bool ok = execute(action, *diagnostics);
  std::unique_ptr<llvm::Module> module = action.takeModule();
  if (!ok || !module) fail(ErrorKind::invalid, "the CPU executor's compiler refuses the source: {}", errors.text());
  return module;
}

// ---- places in the source ----

// Lines of the kernel's own file: an operation of device/cpu stands for the line that called it.
class Lines {
 public:
  explicit Lines(std::string kernel) : kernel_(std::move(kernel)) {}

  int of(const llvm::Instruction& instruction) const {
    if (const int line = of(instruction.getDebugLoc().get())) return line;
    // The optimiser dropped it: the nearest before it in the block, else behind it.
    for (const llvm::Instruction* i = instruction.getPrevNode(); i != nullptr; i = i->getPrevNode())
      if (const int line = of(i->getDebugLoc().get())) return line;
    for (const llvm::Instruction* i = instruction.getNextNode(); i != nullptr; i = i->getNextNode())
      if (const int line = of(i->getDebugLoc().get())) return line;
    const llvm::DISubprogram* function = instruction.getFunction()->getSubprogram();
    return function != nullptr && is_kernel(function->getFilename()) ? static_cast<int>(function->getLine()) : 0;
  }

 private:
  int of(const llvm::DILocation* location) const {
    for (; location != nullptr; location = location->getInlinedAt())
      if (location->getLine() != 0 && is_kernel(location->getFilename())) return static_cast<int>(location->getLine());
    return 0;
  }
  bool is_kernel(llvm::StringRef file) const { return llvm::StringRef(kernel_).ends_with(file) && !file.empty(); }

  std::string kernel_;
};

bool is_entry(const llvm::Function& function, const Source& source) {
  return std::any_of(source.entries.begin(), source.entries.end(),
                     [&](const Entry& e) { return function.getName() == llvm::StringRef(e.name); });
}

void refuse_inline_assembly(const llvm::Module& module, const Lines& lines, const std::string& file) {
  for (const llvm::Function& function : module)
    for (const llvm::BasicBlock& block : function)
      for (const llvm::Instruction& instruction : block)
        if (const auto* call = llvm::dyn_cast<llvm::CallBase>(&instruction); call != nullptr && call->isInlineAsm())
          fail(ErrorKind::invalid,
               "{}:{}: inline assembly, which the CPU executor can't run; it belongs into an operation of "
               "templates/device, which has a CPU body",
               file, lines.of(instruction));
  if (!module.getModuleInlineAsm().empty())
    fail(ErrorKind::invalid, "{}: assembly outside any function, which the CPU executor can't run", file);
}

std::string name_of(const llvm::GlobalValue& g) {
  std::string name = llvm::demangle(g.getName().str());
  // An initialiser of a local variable is "__const.function.variable".
  const std::size_t end = name.find_last_of(name.starts_with("__const.") ? "." : ":");
  return name.substr(end == std::string::npos ? 0 : end + 1);
}

// The first line of those that use it; 0: none has one.
int line_of_use(const llvm::Value& value, const Lines& lines) {
  int first = 0;
  for (const llvm::User* user : value.users()) {
    int line = 0;
    if (const auto* instruction = llvm::dyn_cast<llvm::Instruction>(user))
      line = lines.of(*instruction);
    else if (llvm::isa<llvm::Constant>(user) && !llvm::isa<llvm::GlobalVariable>(user))
      line = line_of_use(*user, lines);
    if (line > 0 && (first == 0 || line < first)) first = line;
  }
  return first;
}

// Variables that outlive a launch: blocks of a launch would share them, unordered, and no caller knows of them.
void refuse_mutable_globals(const llvm::Module& module, const Lines& lines, const std::string& file) {
  for (const llvm::GlobalVariable& g : module.globals()) {
    if (g.isConstant() || g.isDeclaration() || g.use_empty() || g.getName().starts_with("llvm.")) continue;
    if (std::find(std::begin(kHereNames), std::end(kHereNames), std::string_view(g.getName())) != std::end(kHereNames))
      continue;
    fail(ErrorKind::invalid, "{}:{}: {} is a variable of the module that can change, which a kernel can't have", file,
         line_of_use(g, lines), in_quotes(name_of(g)));
  }
}

// What takes more stack than can be known before the launch, or more than a GPU has for a thread.
void refuse_endless_stacks(const llvm::Module& module, const Source& source, const Lines& lines,
                           const std::string& file) {
  constexpr std::uint64_t kMostLocal = 512 << 10;
  std::vector<const llvm::Function*> addressed;
  for (const llvm::Function& function : module)
    if (!function.isDeclaration() && function.hasAddressTaken()) addressed.push_back(&function);
  std::map<const llvm::Function*, bool> state;  // seen; true: done with
  const auto walk = [&](const auto& self, const llvm::Function& function) -> void {
    state[&function] = false;
    const auto go_to = [&](const llvm::Function& to, const llvm::Instruction& from) {
      if (to.isDeclaration()) return;
      const auto found = state.find(&to);
      if (found == state.end()) {
        self(self, to);
      } else if (!found->second) {
        fail(ErrorKind::invalid, "{}:{}: {} calls itself, directly or through others, which the CPU executor can't run",
             file, lines.of(from), llvm::demangle(to.getName().str()));
      }
    };
    for (const llvm::BasicBlock& block : function) {
      for (const llvm::Instruction& instruction : block) {
        if (const auto* local = llvm::dyn_cast<llvm::AllocaInst>(&instruction)) {
          const int line = line_of_use(*local, lines);
          if (!local->isStaticAlloca())
            fail(ErrorKind::invalid,
                 "{}:{}: memory on the stack whose size is known only at run time, which the CPU executor can't run",
                 file, line);
          const std::uint64_t bytes = local->getAllocationSize(module.getDataLayout())->getFixedValue();
          if (bytes > kMostLocal)
            fail(ErrorKind::invalid, "{}:{}: a local variable of {} bytes; a thread has at most {}", file, line, bytes,
                 kMostLocal);
        }
        if (llvm::isa<llvm::IndirectBrInst>(instruction))
          fail(ErrorKind::invalid, "{}:{}: a goto to a computed place, which the CPU executor can't run", file,
               lines.of(instruction));
        const auto* call = llvm::dyn_cast<llvm::CallBase>(&instruction);
        if (call == nullptr) continue;
        if (const auto* to = llvm::dyn_cast<llvm::Function>(call->getCalledOperand()->stripPointerCasts())) {
          if (to->getIntrinsicID() == llvm::Intrinsic::eh_sjlj_longjmp)
            fail(ErrorKind::invalid, "{}:{}: a jump out of a function, which the CPU executor can't run", file,
                 lines.of(instruction));
          go_to(*to, instruction);
          continue;
        }
        for (const llvm::Function* to : addressed)
          if (to->getFunctionType() == call->getFunctionType() && !is_entry(*to, source)) go_to(*to, instruction);
      }
    }
    state[&function] = true;
  };
  for (const Entry& e : source.entries)
    if (const llvm::Function* kernel = module.getFunction(e.name); kernel != nullptr && state.count(kernel) == 0)
      walk(walk, *kernel);
}

// Functions that neither the source nor the runtime has.
void refuse_undefined(const llvm::Module& module, const Lines& lines, const std::string& file) {
  std::set<std::string_view> known;
  for (const RuntimeFunction& f : runtime_functions()) known.insert(f.name);
  for (const llvm::Function& function : module) {
    if (!function.isDeclaration() || function.isIntrinsic() || known.count(std::string_view(function.getName())) > 0)
      continue;
    int line = 0;
    for (const llvm::User* user : function.users())
      if (const auto* instruction = llvm::dyn_cast<llvm::Instruction>(user); instruction != nullptr && line == 0)
        line = lines.of(*instruction);
    fail(ErrorKind::invalid, "{}:{}: {} is called and defined nowhere", file, line,
         llvm::demangle(function.getName().str()));
  }
}

// ---- passes of our own ----

llvm::FunctionCallee runtime(llvm::Module& module, const char* name, llvm::Type* result,
                             std::initializer_list<llvm::Type*> parameters) {
  llvm::FunctionCallee callee =
      module.getOrInsertFunction(name, llvm::FunctionType::get(result, parameters, /*isVarArg=*/false));
  if (auto* function = llvm::dyn_cast<llvm::Function>(callee.getCallee())) {
    function->setDoesNotThrow();
    function->setWillReturn();
  }
  return callee;
}

// Shared variables become offsets from a base that each block has its own of.
void lower_shared(llvm::Module& module, Code& code) {
  const llvm::DataLayout& layout = module.getDataLayout();
  llvm::IRBuilder<> types(module.getContext());
  std::vector<llvm::GlobalVariable*> fixed, dynamic;
  // Those of a size are annotated by __shared__; what is declared and nowhere defined is `extern __shared__`.
  if (llvm::GlobalVariable* annotations = module.getGlobalVariable("llvm.global.annotations")) {
    const auto* list = llvm::dyn_cast<llvm::ConstantArray>(annotations->getInitializer());
    for (unsigned i = 0; list != nullptr && i < list->getNumOperands(); ++i) {
      auto* g = llvm::dyn_cast<llvm::GlobalVariable>(list->getOperand(i)->getOperand(0)->stripPointerCasts());
      if (g != nullptr && !g->isDeclaration() && std::find(fixed.begin(), fixed.end(), g) == fixed.end())
        fixed.push_back(g);
    }
    annotations->eraseFromParent();
  }
  for (llvm::GlobalVariable& g : module.globals())
    if (g.isDeclaration() && !g.getName().starts_with("llvm.")) dynamic.push_back(&g);
  if (fixed.empty() && dynamic.empty()) return;
  llvm::FunctionCallee base = runtime(module, "ssmjit_cpu_shared", types.getPtrTy(), {});
  llvm::cast<llvm::Function>(base.getCallee())->setDoesNotAccessMemory();
  const auto replace = [&](llvm::GlobalVariable* g, std::size_t offset) {
    llvm::convertUsersOfConstantsToInstructions({g});
    std::map<llvm::Function*, llvm::Value*> in_function;
    llvm::SmallVector<llvm::Use*> uses;
    for (llvm::Use& use : g->uses()) uses.push_back(&use);
    for (llvm::Use* use : uses) {
      auto* user = llvm::dyn_cast<llvm::Instruction>(use->getUser());
      if (user == nullptr) continue;
      llvm::Value*& address = in_function[user->getFunction()];
      if (address == nullptr) {
        llvm::IRBuilder<> at(&*user->getFunction()->getEntryBlock().getFirstInsertionPt());
        address = at.CreateConstInBoundsGEP1_64(at.getInt8Ty(), at.CreateCall(base), offset);
      }
      use->set(address);
    }
    g->removeDeadConstantUsers();
    if (g->use_empty()) g->eraseFromParent();
  };
  std::size_t end = 0;
  for (llvm::GlobalVariable* g : fixed) {
    const std::size_t alignment = layout.getValueOrABITypeAlignment(g->getAlign(), g->getValueType()).value();
    const std::size_t offset = llvm::alignTo(end, alignment);
    const std::size_t bytes = layout.getTypeAllocSize(g->getValueType());
    code.shared.push_back({name_of(*g), offset, bytes});
    end = offset + bytes;
    replace(g, offset);
  }
  std::size_t alignment = 16;
  for (const llvm::GlobalVariable* g : dynamic)
    alignment = std::max<std::size_t>(alignment, g->getAlign().valueOrOne().value());
  code.static_bytes = dynamic.empty() ? end : llvm::alignTo(end, alignment);
  for (llvm::GlobalVariable* g : dynamic) {
    code.dynamic_name = name_of(*g);
    replace(g, code.static_bytes);
  }
}

void keep_only_entries(llvm::Module& module) {
  for (llvm::Function& function : module) {
    if (function.isDeclaration()) continue;
    const llvm::StringRef name = function.getName();
    if (!name.starts_with(kCallPrefix) && !name.starts_with(kBytesPrefix))
      function.setLinkage(llvm::GlobalValue::InternalLinkage);
    function.setComdat(nullptr);
  }
  // Nothing is kept for its own sake: what a kernel does not reach goes.
  for (const char* list : {"llvm.used", "llvm.compiler.used"})
    if (llvm::GlobalVariable* used = module.getGlobalVariable(list, true)) used->eraseFromParent();
}

// The smallest integer divided by -1 wraps on a GPU; here it would trap, and the optimiser takes it for impossible.
void wrap_divisions(llvm::Module& module) {
  std::vector<llvm::Instruction*> divisions;
  for (llvm::Function& function : module)
    for (llvm::BasicBlock& block : function)
      for (llvm::Instruction& instruction : block)
        if (instruction.getOpcode() == llvm::Instruction::SDiv || instruction.getOpcode() == llvm::Instruction::SRem)
          divisions.push_back(&instruction);
  for (llvm::Instruction* division : divisions) {
    llvm::Value* by = division->getOperand(1);
    llvm::Type* type = by->getType();
    if (const auto* constant = llvm::dyn_cast<llvm::ConstantInt>(by); constant != nullptr && !constant->isMinusOne())
      continue;
    llvm::IRBuilder<> build(division);
    llvm::Constant* smallest =
        llvm::ConstantInt::get(type, llvm::APInt::getSignedMinValue(type->getScalarSizeInBits()));
    llvm::Value* wraps = build.CreateAnd(build.CreateICmpEQ(division->getOperand(0), smallest),
                                         build.CreateICmpEQ(by, llvm::Constant::getAllOnesValue(type)));
    division->setOperand(1, build.CreateSelect(wraps, llvm::ConstantInt::get(type, 1), by));
  }
}

void optimise(llvm::Module& module, llvm::TargetMachine& machine, int level) {
  llvm::LoopAnalysisManager loops;
  llvm::FunctionAnalysisManager functions;
  llvm::CGSCCAnalysisManager sccs;
  llvm::ModuleAnalysisManager modules;
  llvm::PipelineTuningOptions tuning;
  tuning.LoopVectorization = tuning.SLPVectorization = level >= 2;
  llvm::PassBuilder builder(&machine, tuning);
  builder.registerModuleAnalyses(modules);
  builder.registerCGSCCAnalyses(sccs);
  builder.registerFunctionAnalyses(functions);
  builder.registerLoopAnalyses(loops);
  builder.crossRegisterProxies(loops, functions, sccs, modules);
  const llvm::OptimizationLevel target = level == 0   ? llvm::OptimizationLevel::O0
                                         : level == 1 ? llvm::OptimizationLevel::O1
                                                      : llvm::OptimizationLevel::O2;
  llvm::ModulePassManager passes =
      level == 0 ? builder.buildO0DefaultPipeline(target) : builder.buildPerModuleDefaultPipeline(target);
  passes.run(module, modules);
}

// Behind the optimiser, so that what is left to check is what is left to run: every access but those to a thread's own
// variables at places that are known to be in them, the line of every call into the runtime, every way back to code
// that has run, every division, every call through a pointer.
class Instrument {
 public:
  Instrument(llvm::Module& module, const Source& source, const Lines& lines, bool checks, Code& code)
      : module_(module), source_(source), lines_(lines), checks_(checks), code_(code), build_(module.getContext()) {
    llvm::Type* nothing = build_.getVoidTy();
    llvm::Type* pointer = build_.getPtrTy();
    llvm::Type* i32 = build_.getInt32Ty();
    at_ = runtime(module, "ssmjit_cpu_at", nothing, {i32});
    tick_ = runtime(module, "ssmjit_cpu_tick", nothing, {i32});
    access_ = runtime(module, "ssmjit_cpu_access", nothing, {pointer, i32, i32});
    fault_ = runtime(module, "ssmjit_cpu_fault", nothing, {i32, i32});
    range_ = runtime(module, "ssmjit_cpu_access_range", nothing, {pointer, build_.getInt64Ty(), i32});
    outside_ = runtime(module, "ssmjit_cpu_outside", nothing, {build_.getInt64Ty(), build_.getInt64Ty(), i32, i32});
    wild_call_ = runtime(module, "ssmjit_cpu_wild_call", nothing, {pointer, i32});
    for (llvm::Function& function : module)
      if (!function.isDeclaration() && function.hasAddressTaken()) addressed_.push_back(&function);
    for (const RuntimeFunction& f : runtime_functions())
      if (f.marks_place) marked_.insert(f.name);
    code_.sites.emplace_back();  // 0: not known
  }

  void run() {
    for (llvm::Function& function : module_) {
      if (function.isDeclaration()) continue;
      std::vector<llvm::Instruction*> all;
      for (llvm::BasicBlock& block : function)
        for (llvm::Instruction& instruction : block) all.push_back(&instruction);
      llvm::SmallVector<std::pair<const llvm::BasicBlock*, const llvm::BasicBlock*>> back;
      llvm::FindFunctionBackedges(function, back);
      std::set<const llvm::BasicBlock*> from;
      for (const auto& edge : back) from.insert(edge.first);
      for (llvm::BasicBlock& block : function) {
        if (from.count(&block) == 0) continue;
        place_before(block.getTerminator());
        build_.CreateCall(tick_, {site(*block.getTerminator(), {})});
      }
      for (llvm::Instruction* instruction : all) look_at(*instruction);
    }
  }

 private:
  llvm::Value* site(const llvm::Instruction& instruction, Site s) {
    s.line = lines_.of(instruction);
    code_.sites.push_back(s);
    return build_.getInt32(static_cast<std::uint32_t>(code_.sites.size() - 1));
  }

  void place_before(llvm::Instruction* instruction) {
    build_.SetInsertPoint(instruction);
    build_.SetCurrentDebugLocation(instruction->getDebugLoc());
    // A call within a function that has debug information must have a place of its own.
    if (!instruction->getDebugLoc() && instruction->getFunction()->getSubprogram() != nullptr)
      build_.SetCurrentDebugLocation(
          llvm::DILocation::get(module_.getContext(), 0, 0, instruction->getFunction()->getSubprogram()));
  }

  void access(llvm::Instruction& instruction, llvm::Value* pointer, llvm::Type* type, llvm::Align alignment, bool write,
              bool atomic, bool update = false) {
    if (!checks_ || of_runtime(pointer)) return;
    const auto bytes = static_cast<std::uint32_t>(module_.getDataLayout().getTypeStoreSize(type).getFixedValue());
    if (own(instruction, pointer, build_.getInt64(bytes), write)) return;
    place_before(&instruction);
    llvm::Value* where = site(instruction, {.bytes = bytes,
                                            .alignment = static_cast<std::uint32_t>(alignment.value()),
                                            .write = write,
                                            .atomic = atomic,
                                            .update = update,
                                            .space = pointer->getType()->getPointerAddressSpace()});
    build_.CreateCall(access_, {plain(pointer), build_.getInt32(bytes), where});
  }

  void range(llvm::Instruction& instruction, llvm::Value* pointer, llvm::Value* bytes, llvm::MaybeAlign alignment,
             bool write) {
    if (!checks_ || of_runtime(pointer)) return;
    place_before(&instruction);
    bytes = build_.CreateZExtOrTrunc(bytes, build_.getInt64Ty());
    if (own(instruction, pointer, bytes, write)) return;
    place_before(&instruction);
    llvm::Value* where = site(instruction, {.alignment = static_cast<std::uint32_t>(alignment.valueOrOne().value()),
                                            .write = write,
                                            .space = pointer->getType()->getPointerAddressSpace()});
    build_.CreateCall(range_, {plain(pointer), bytes, where});
  }

  // The runtime takes pointers that name no address space.
  llvm::Value* plain(llvm::Value* pointer) { return build_.CreateAddrSpaceCast(pointer, build_.getPtrTy()); }

  // Whether these bytes lie in a variable of the thread's own, or are read in a constant of the module. Where only the
  // run can tell whether they do, it is asked.
  bool own(llvm::Instruction& instruction, llvm::Value* pointer, llvm::Value* bytes, bool write) {
    llvm::SmallVector<const llvm::Value*> objects;
    llvm::getUnderlyingObjects(pointer, objects, nullptr, 0);
    if (objects.size() != 1) return false;
    auto* object = const_cast<llvm::Value*>(objects.front());
    const llvm::DataLayout& layout = module_.getDataLayout();
    std::uint64_t size = 0;
    std::string name;
    if (const auto* local = llvm::dyn_cast<llvm::AllocaInst>(object)) {
      size = local->getAllocationSize(layout).value_or(llvm::TypeSize::getFixed(0)).getFixedValue();
      name = local->getName().str();
    } else if (const auto* global = llvm::dyn_cast<llvm::GlobalVariable>(object); global != nullptr && !write) {
      size = layout.getTypeAllocSize(global->getValueType());
      name = name_of(*global);
    } else {
      return false;
    }
    llvm::APInt offset(64, 0);
    const auto* length = llvm::dyn_cast<llvm::ConstantInt>(bytes);
    if (pointer->stripAndAccumulateConstantOffsets(layout, offset, /*AllowNonInbounds=*/true) == object &&
        length != nullptr && offset.ule(size) && length->getValue().ule(size - offset.getZExtValue()))
      return true;
    place_before(&instruction);
    llvm::Type* i64 = build_.getInt64Ty();
    llvm::Value* at = build_.CreateSub(build_.CreatePtrToInt(pointer, i64), build_.CreatePtrToInt(object, i64));
    llvm::Value* wrong =
        length != nullptr && length->getValue().ule(size)
            ? build_.CreateICmpUGT(at, build_.getInt64(size - length->getZExtValue()))
            : build_.CreateOr(build_.CreateICmpUGT(at, build_.getInt64(size)),
                              build_.CreateICmpUGT(bytes, build_.CreateSub(build_.getInt64(size), at)));
    llvm::Value* where = site(instruction, {.write = write});
    branch(instruction, wrong);
    code_.variables.push_back({name.substr(0, name.find('.')), static_cast<std::size_t>(size)});
    build_.CreateCall(outside_,
                      {at, bytes, build_.getInt32(static_cast<std::uint32_t>(code_.variables.size() - 1)), where});
    return true;
  }

  // Goes on building in a block of its own, which is run before the instruction where the condition holds.
  void branch(llvm::Instruction& instruction, llvm::Value* condition) {
    const llvm::DebugLoc at = build_.getCurrentDebugLocation();
    build_.SetInsertPoint(llvm::SplitBlockAndInsertIfThen(condition, &instruction, /*Unreachable=*/false));
    build_.SetCurrentDebugLocation(at);
  }

  // Whether it points to what the runtime hands out, parameters of the launch at a fixed place included.
  bool of_runtime(const llvm::Value* pointer) const {
    const llvm::Value* object = llvm::getUnderlyingObject(pointer, 0);
    if (const auto* argument = llvm::dyn_cast<llvm::Argument>(object)) {
      llvm::APInt offset(64, 0);
      return argument->getParent()->getName().starts_with(kCallPrefix) &&
             pointer->stripAndAccumulateConstantOffsets(module_.getDataLayout(), offset, true) == object;
    }
    const auto* call = llvm::dyn_cast<llvm::CallBase>(object);
    return call != nullptr && call->getCalledFunction() != nullptr &&
           (call->getCalledFunction()->getName() == "ssmjit_cpu_thread" ||
            call->getCalledFunction()->getName() == "ssmjit_cpu_exchange");
  }

  // What would end the process: a division by zero, a trap.
  void divisor(llvm::Instruction& instruction) {
    llvm::Value* by = instruction.getOperand(1);
    const auto* constant = llvm::dyn_cast<llvm::ConstantInt>(by);
    if (constant != nullptr && !constant->isZero()) return;
    place_before(&instruction);
    llvm::Value* zero = build_.CreateICmpEQ(by, llvm::ConstantInt::get(by->getType(), 0));
    if (by->getType()->isVectorTy()) zero = build_.CreateOrReduce(zero);
    build_.CreateCall(fault_, {build_.CreateZExt(zero, build_.getInt32Ty()), site(instruction, {})});
  }
  // A call through a pointer: it must be one of the functions whose address the source takes.
  void target(llvm::CallBase& call) {
    const llvm::StringRef caller = call.getFunction()->getName();
    const bool from_launch = caller.starts_with(kCallPrefix) || caller.contains("ssmjit_cpu_apply");
    llvm::Value* wild = build_.getTrue();
    place_before(&call);
    for (llvm::Function* function : addressed_) {
      if (function->getFunctionType() != call.getFunctionType()) continue;
      // Kernels are called by the launch alone.
      if (is_entry(*function, source_) && !from_launch) continue;
      wild = build_.CreateAnd(wild, build_.CreateICmpNE(call.getCalledOperand(), function));
    }
    llvm::Value* where = site(call, {});
    branch(call, wild);
    build_.CreateCall(wild_call_, {call.getCalledOperand(), where});
  }
  void trap(llvm::Instruction& instruction) {
    place_before(&instruction);
    build_.CreateCall(fault_, {build_.getInt32(2), site(instruction, {})});
  }

  void look_at(llvm::Instruction& instruction) {
    if (auto* load = llvm::dyn_cast<llvm::LoadInst>(&instruction)) {
      access(instruction, load->getPointerOperand(), load->getType(), load->getAlign(), false,
             load->isVolatile() || load->isAtomic());
    } else if (auto* store = llvm::dyn_cast<llvm::StoreInst>(&instruction)) {
      access(instruction, store->getPointerOperand(), store->getValueOperand()->getType(), store->getAlign(), true,
             store->isVolatile() || store->isAtomic());
    } else if (auto* rmw = llvm::dyn_cast<llvm::AtomicRMWInst>(&instruction)) {
      access(instruction, rmw->getPointerOperand(), rmw->getValOperand()->getType(), rmw->getAlign(), true, true, true);
    } else if (auto* swap = llvm::dyn_cast<llvm::AtomicCmpXchgInst>(&instruction)) {
      access(instruction, swap->getPointerOperand(), swap->getNewValOperand()->getType(), swap->getAlign(), true, true,
             true);
    } else if (auto* memory = llvm::dyn_cast<llvm::MemIntrinsic>(&instruction)) {
      if (auto* transfer = llvm::dyn_cast<llvm::MemTransferInst>(memory))
        range(instruction, transfer->getSource(), transfer->getLength(), transfer->getSourceAlign(), false);
      range(instruction, memory->getDest(), memory->getLength(), memory->getDestAlign(), true);
    } else if (instruction.isIntDivRem()) {
      divisor(instruction);
    } else if (llvm::isa<llvm::UnreachableInst>(instruction)) {
      // What the optimiser took for impossible: the code would run on into the next function.
      trap(instruction);
    } else if (auto* call = llvm::dyn_cast<llvm::CallBase>(&instruction)) {
      if (call->getIntrinsicID() == llvm::Intrinsic::trap) trap(instruction);
      const llvm::Function* callee = call->getCalledFunction();
      if (callee == nullptr && !llvm::isa<llvm::Function>(call->getCalledOperand()) && !call->isInlineAsm())
        target(*call);
      if (callee == nullptr || marked_.count(std::string_view(callee->getName())) == 0) return;
      place_before(&instruction);
      build_.CreateCall(at_, {site(instruction, {})});
    }
  }

  llvm::Module& module_;
  const Source& source_;
  const Lines& lines_;
  bool checks_;
  Code& code_;
  llvm::IRBuilder<> build_;
  llvm::FunctionCallee at_, tick_, access_, range_, fault_, outside_, wild_call_;
  std::vector<llvm::Function*> addressed_;
  std::set<std::string_view> marked_;
};

// The addresses of the module's own variables, for pointers that come to them on a roundabout way.
std::size_t list_constants(llvm::Module& module) {
  llvm::IRBuilder<> types(module.getContext());
  std::vector<llvm::Constant*> entries;
  for (llvm::GlobalVariable& g : module.globals()) {
    if (g.isDeclaration() || g.getName().starts_with("llvm.")) continue;
    entries.push_back(&g);
    const std::uint64_t bytes = module.getDataLayout().getTypeAllocSize(g.getValueType());
    entries.push_back(llvm::ConstantExpr::getIntToPtr(types.getInt64(bytes), types.getPtrTy()));
  }
  auto* type = llvm::ArrayType::get(types.getPtrTy(), entries.size());
  auto* list = llvm::cast<llvm::GlobalVariable>(module.getOrInsertGlobal(kConstants, type));
  list->setConstant(true);
  list->setInitializer(llvm::ConstantArray::get(type, entries));
  return entries.size() / 2;
}

// What all functions together keep on the stack, their variables and, at worst, every value: no call chain needs more,
// as none recurses.
std::size_t stack_of(const llvm::Module& module) {
  const llvm::DataLayout& layout = module.getDataLayout();
  std::size_t bytes = 0;
  for (const llvm::Function& function : module)
    for (const llvm::BasicBlock& block : function)
      for (const llvm::Instruction& instruction : block) {
        if (const auto* local = llvm::dyn_cast<llvm::AllocaInst>(&instruction))
          bytes += local->getAllocationSize(layout).value_or(llvm::TypeSize::getFixed(0)).getFixedValue();
        if (instruction.getType()->isSized())
          bytes += std::max<std::size_t>(8, layout.getTypeAllocSize(instruction.getType()).getFixedValue());
      }
  return bytes;
}

class JitCode : public Code {
 public:
  std::unique_ptr<llvm::orc::LLJIT> jit;
};

template <class T>
T take(llvm::Expected<T> expected, const char* what) {
  if (!expected)
    fail(ErrorKind::machine, "CPU executor: LLVM could not {}: {}", what, llvm::toString(expected.takeError()));
  return std::move(*expected);
}

// The first error of optimiser or code generator; what else they have to say, of loops that they leave as they are,
// say, goes nowhere. Without it LLVM prints all that, and ends the process at an error.
class BackEndErrors : public llvm::DiagnosticHandler {
 public:
  explicit BackEndErrors(std::shared_ptr<std::string> first) : first_(std::move(first)) {}
  bool handleDiagnostics(const llvm::DiagnosticInfo& info) override {
    if (info.getSeverity() != llvm::DS_Error || !first_->empty()) return true;
    llvm::raw_string_ostream text(*first_);
    llvm::DiagnosticPrinterRawOStream printer(text);
    info.print(printer);
    return true;
  }

 private:
  std::shared_ptr<std::string> first_;
};

std::unique_ptr<Code> build_here(const Source& source, const CodeOptions& options) {
  initialise();
  auto code = std::make_unique<JitCode>();
  code->file = options.file;
  const Files files = files_of(source, options);
  if (options.debug) write_to_disk(files);

  auto context = std::make_unique<llvm::LLVMContext>();
  const auto back_end_error = std::make_shared<std::string>();
  context->setDiagnosticHandler(std::make_unique<BackEndErrors>(back_end_error));
  std::unique_ptr<llvm::Module> module = front_end(files, source, options, *context);
  const Lines lines(files.kernel);
  refuse_inline_assembly(*module, lines, options.file);

  llvm::orc::JITTargetMachineBuilder target =
      take(llvm::orc::JITTargetMachineBuilder::detectHost(), "describe this machine");
  target.setRelocationModel(llvm::Reloc::PIC_);
  target.setCodeGenOptLevel(options.optimisation == 0   ? llvm::CodeGenOptLevel::None
                            : options.optimisation == 1 ? llvm::CodeGenOptLevel::Less
                                                        : llvm::CodeGenOptLevel::Default);
  const std::unique_ptr<llvm::TargetMachine> machine = take(target.createTargetMachine(), "make code for this machine");
  module->setDataLayout(machine->createDataLayout());

  for (const Entry& e : source.entries) {
    const llvm::Function* kernel = module->getFunction(e.name);
    const llvm::DISubprogram* place = kernel != nullptr ? kernel->getSubprogram() : nullptr;
    code->entries.push_back({.name = e.name, .line = place != nullptr ? static_cast<int>(place->getLine()) : 0});
  }
  refuse_endless_stacks(*module, source, lines, options.file);
  lower_shared(*module, *code);
  refuse_mutable_globals(*module, lines, options.file);
  keep_only_entries(*module);
  wrap_divisions(*module);
  optimise(*module, *machine, options.optimisation);
  Instrument(*module, source, lines, options.checks, *code).run();
  refuse_undefined(*module, lines, options.file);
  code->stack_bytes = 32768 + 2 * stack_of(*module);
  const std::size_t constants = list_constants(*module);
  if (!options.debug) llvm::StripDebugInfo(*module);

  llvm::orc::LLJITBuilder builder;
  builder.setJITTargetMachineBuilder(target);
  builder.setObjectLinkingLayerCreator(
      [&](llvm::orc::ExecutionSession& session,
          const llvm::Triple&) -> llvm::Expected<std::unique_ptr<llvm::orc::ObjectLayer>> {
        auto layer = std::make_unique<llvm::orc::RTDyldObjectLinkingLayer>(
            session, [] { return std::make_unique<llvm::SectionMemoryManager>(); });
        if (options.debug) layer->registerJITEventListener(*llvm::JITEventListener::createGDBRegistrationListener());
        return layer;
      });
  code->jit = take(builder.create(), "set up its JIT");
  code->jit->getExecutionSession().setErrorReporter([](llvm::Error e) { llvm::consumeError(std::move(e)); });
  llvm::orc::SymbolMap symbols;
  for (const RuntimeFunction& f : runtime_functions())
    symbols[code->jit->mangleAndIntern(llvm::StringRef(f.name.data(), f.name.size()))] = {
        llvm::orc::ExecutorAddr::fromPtr(f.address), llvm::JITSymbolFlags::Exported | llvm::JITSymbolFlags::Callable};
  if (llvm::Error e = code->jit->getMainJITDylib().define(llvm::orc::absoluteSymbols(symbols)))
    fail(ErrorKind::machine, "CPU executor: LLVM could not take the runtime: {}", llvm::toString(std::move(e)));
  if (llvm::Error e = code->jit->addIRModule(llvm::orc::ThreadSafeModule(std::move(module), std::move(context))))
    fail(ErrorKind::machine, "CPU executor: LLVM could not take the kernel: {}", llvm::toString(std::move(e)));

  const auto address = [&](const std::string& name) { return take(code->jit->lookup(name), "link the kernel"); };
  for (EntryCode& e : code->entries) {
    e.call = address(std::string(kCallPrefix) + e.name).toPtr<void (*)(const void*)>();
    e.args_bytes = address(std::string(kBytesPrefix) + e.name).toPtr<std::uint64_t (*)()>()();
  }
  if (!back_end_error->empty())
    fail(ErrorKind::machine, "CPU executor: LLVM could not make code for the kernel: {}", *back_end_error);
  if (options.debug) {
    const auto variable = [&](const char* name) { return address(name).toPtr<std::uint32_t*>(); };
    code->here = {variable("threadIdx"), variable("blockIdx"), variable("blockDim"), variable("gridDim")};
  }
  if (constants > 0) {
    const std::uintptr_t* list = address(kConstants).toPtr<const std::uintptr_t*>();
    for (std::size_t i = 0; i < constants; ++i) code->constants.emplace_back(list[2 * i], list[2 * i + 1]);
  }
  return code;
}

}  // namespace

std::unique_ptr<Code> build(const Source& source, const CodeOptions& options) {
  std::unique_ptr<Code> code;
  on_large_stack([&] { code = build_here(source, options); });
  return code;
}

}  // namespace ssmjit::cpu
