// The compiler: the C++ compiler of the host, which makes a shared library of a text of kernels. A library is kept in the
// folder for temporary files by the hash of all it is made from. TOOLKIT is the version it says it is, KNOWN the kinds of
// cards it says it knows.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr int SUCCESS = 0, COMPILATION = 6;

// Order of additions as it is written; faults of alignment are signals.
const char *FLAGS = "-std=c++17 -O2 -fno-strict-aliasing -march=native -ffp-contract=off -fno-exceptions -fno-rtti -w "
                    "-fsanitize=alignment -fsanitize-undefined-trap-on-error";

struct Program {
    std::string text, name, log, image;
};

std::string folder_of_library() {
    Dl_info info;
    dladdr(reinterpret_cast<void *>(&folder_of_library), &info);
    std::string path = info.dli_fname;
    auto slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream content;
    content << file.rdbuf();
    return content.str();
}

std::string hash(const std::string &text) {
    // FNV-1a, twice from different starts.
    uint64_t sums[2] = {0xcbf29ce484222325u, 0x84222325cbf29ce4u};
    for (unsigned char byte : text)
        for (auto &sum : sums) sum = (sum ^ byte) * 0x100000001b3u;
    char hex[40];
    snprintf(hex, sizeof hex, "%016llx%016llx", static_cast<unsigned long long>(sums[0]),
             static_cast<unsigned long long>(sums[1]));
    return hex;
}

std::string compiler() {
    const char *name = getenv("CXX");
    return name && *name ? name : "g++";
}

// For each kernel what the driver calls, and how large its arguments are.
std::string calls(const std::string &preprocessed) {
    static const std::regex kernel(R"(visibility\("default"\)\)\)\s*(?:\[\[[^\]]*\]\]\s*)?void\s+([A-Za-z_]\w*)\s*\()");
    std::string out = "\nextern \"C\" {\n";
    for (std::sregex_iterator it(preprocessed.begin(), preprocessed.end(), kernel), end; it != end; ++it) {
        std::string name = (*it)[1];
        out += "void emulated_call_" + name + "(void **arguments) { emulated::call(" + name + ", arguments); }\n";
        out += "const size_t *emulated_sizes_" + name + "() { return emulated::sizes_of(" + name + "); }\n";
    }
    return out + "}\n";
}

bool run(const std::string &command, const std::string &log, std::string &said) {
    int status = system((command + " >" + log + " 2>&1").c_str());
    said = read_file(log);
    return status == 0;
}

bool compile(Program &program) {
    std::string here = folder_of_library();
    std::string header = read_file(here + "/kernel.hpp");
    const char *temporary = getenv("TMPDIR");
    std::string folder = std::string(temporary && *temporary ? temporary : "/tmp") + "/emulated-card-" + std::to_string(getuid());
    mkdir(folder.c_str(), 0700);
    std::string name = folder + "/" + hash(header + '\0' + program.text + '\0' + FLAGS + compiler());
    std::string kept = read_file(name + ".so");
    if (kept.empty()) {
        std::string own = name + "." + std::to_string(getpid());
        std::ofstream(own + ".cpp") << "#include \"" << here << "/kernel.hpp\"\n#line 1 \"" << program.name << "\"\n" << program.text;
        std::string flags = std::string(" ") + FLAGS + " ";
        bool done = run(compiler() + flags + "-E " + own + ".cpp -o " + own + ".i", own + ".log", program.log);
        if (done) {
            std::string text = read_file(own + ".i");
            std::ofstream(own + ".ii", std::ios::binary) << text << calls(text);
            done = run(compiler() + flags + "-shared -fPIC " + own + ".ii -o " + own + ".so -L" + here + " -l:libcuda.so.1",
                       own + ".log", program.log);
        }
        if (done) {
            kept = read_file(own + ".so");
            rename((own + ".so").c_str(), (name + ".so").c_str());
        }
        for (const char *end : {".cpp", ".i", ".ii", ".log"}) unlink((own + end).c_str());
        if (!done) return false;
    }
    uint64_t length = kept.size();
    program.image = "EMULATED" + std::string(reinterpret_cast<const char *>(&length), 8) + kept;
    return true;
}

}  // namespace

extern "C" {

// A version that no real one has: what was compiled by this one must not be taken for what a card can run.
int nvrtcVersion(int *major, int *minor) { return *major = TOOLKIT, *minor = 9999, SUCCESS; }

static const int known[] = {KNOWN};

int nvrtcGetNumSupportedArchs(int *count) { return *count = sizeof known / sizeof *known, SUCCESS; }
int nvrtcGetSupportedArchs(int *architectures) { return memcpy(architectures, known, sizeof known), SUCCESS; }

int nvrtcCreateProgram(void **program, const char *text, const char *name, int, const char *const *, const char *const *) {
    auto *created = new Program();
    created->text = text;
    created->name = name ? name : "kernels";
    *program = created;
    return SUCCESS;
}

int nvrtcDestroyProgram(void **program) {
    delete static_cast<Program *>(*program);
    *program = nullptr;
    return SUCCESS;
}

int nvrtcCompileProgram(void *program, int, const char *const *) {
    return compile(*static_cast<Program *>(program)) ? SUCCESS : COMPILATION;
}

int nvrtcGetProgramLogSize(void *program, size_t *size) {
    return *size = static_cast<Program *>(program)->log.size() + 1, SUCCESS;
}

int nvrtcGetProgramLog(void *program, char *log) {
    auto &text = static_cast<Program *>(program)->log;
    memcpy(log, text.c_str(), text.size() + 1);
    return SUCCESS;
}

int nvrtcGetCUBINSize(void *program, size_t *size) { return *size = static_cast<Program *>(program)->image.size(), SUCCESS; }

int nvrtcGetCUBIN(void *program, char *image) {
    auto &bytes = static_cast<Program *>(program)->image;
    memcpy(image, bytes.data(), bytes.size());
    return SUCCESS;
}

// The same under the names for code that a driver translates, of which this one makes none.
int nvrtcGetPTXSize(void *program, size_t *size) { return nvrtcGetCUBINSize(program, size); }
int nvrtcGetPTX(void *program, char *text) { return nvrtcGetCUBIN(program, text); }

}  // extern "C"
