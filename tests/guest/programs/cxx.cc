/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The C++ run-time: exceptions through frames, threads and C callbacks, destructors on the way, RTTI, static constructors,
 * iostreams, threads, futures, regular expressions.
 */
#include "uklcheck.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <functional>
#include <future>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <typeinfo>
#include <unordered_map>
#include <vector>

namespace
{

/* Static construction: in order within the file, before main, each once; a vector that needs the heap. */
std::string trace;

struct Early {
	explicit Early(const char *name)
	{
		trace += name;
		trace += ' ';
	}
};

Early first("first");
std::vector<int> numbers = {5, 3, 1};
Early second("second");
std::map<std::string, int> table = {{"one", 1}, {"two", 2}};
Early third(table.size() == 2 ? "third" : "?");
int by_function = static_cast<int>(numbers.size()) * 100;

struct Late {
	~Late()
	{
		/* Runs at exit, after main: output still works. */
		std::puts("static destructor");
		std::fflush(stdout);
	}
} late;

struct Failure : std::runtime_error {
	int code;

	Failure(const std::string &what, int code) : std::runtime_error(what), code(code)
	{
	}
};

struct Unrelated {
	virtual ~Unrelated() = default;
};

struct Guard {
	static thread_local int live;

	Guard()
	{
		live++;
	}
	Guard(const Guard &) = delete;
	Guard &operator=(const Guard &) = delete;
	~Guard()
	{
		live--;
	}
};

thread_local int Guard::live = 0;

__attribute__((noinline)) int dive(int depth, int code)
{
	Guard guard;
	volatile char frame[200];

	frame[0] = static_cast<char>(depth);
	if (depth == 0) {
		if (code % 3 == 0)
			throw Failure("deep", code);
		if (code % 3 == 1)
			throw code;
		throw std::string("text");
	}
	return dive(depth - 1, code) + frame[0];
}

void exceptions()
{
	int failures = 0, integers = 0, strings = 0;

	for (int i = 0; i < 600; i++) {
		try {
			dive(i % 60, i);
			ukl_fail("nothing thrown");
		} catch (const Failure &failure) {
			failures += failure.code == i && std::string(failure.what()) == "deep";
		} catch (int code) {
			integers += code == i;
		} catch (...) {
			strings++;
		}
		CHECK_EQ(Guard::live, 0);
	}
	std::cout << "exceptions: " << failures << ' ' << integers << ' ' << strings << '\n';

	/* Rethrown, nested, from a constructor, from a catch block. */
	try {
		try {
			dive(3, 0);
		} catch (const Failure &) {
			std::throw_with_nested(std::logic_error("outer"));
		}
	} catch (const std::logic_error &outer) {
		try {
			std::rethrow_if_nested(outer);
		} catch (const std::runtime_error &inner) {
			std::cout << outer.what() << " <- " << inner.what() << '\n';
		}
	}
	struct Half {
		Guard guard;
		Half()
		{
			throw 7;
		}
	};
	try {
		Half half;
	} catch (int code) {
		CHECK_EQ(code, 7);
		CHECK_EQ(Guard::live, 0);
	}
	CHECK_EQ(std::uncaught_exceptions(), 0);
}

/* The library throws; so does operator new. */
void library_exceptions()
{
	try {
		numbers.at(99) = 1;
	} catch (const std::out_of_range &) {
		std::cout << "out_of_range\n";
	}
	try {
		volatile std::size_t huge = std::size_t(1) << 60;

		::operator delete(::operator new(huge));
		ukl_fail("an exabyte was allocated");
	} catch (const std::bad_alloc &) {
		std::cout << "bad_alloc\n";
	}
	try {
		Unrelated unrelated;
		Unrelated &reference = unrelated;
		struct Other : Unrelated {
		};

		(void)dynamic_cast<Other &>(reference);
	} catch (const std::bad_cast &) {
		std::cout << "bad_cast\n";
	}
	try {
		(void)std::stoi("not a number");
	} catch (const std::invalid_argument &) {
		std::cout << "invalid_argument\n";
	}
	try {
		std::function<void()> empty;

		empty();
	} catch (const std::bad_function_call &) {
		std::cout << "bad_function_call\n";
	}
}

int throwing_compare(const void *left, const void *right)
{
	int a = *static_cast<const int *>(left), b = *static_cast<const int *>(right);

	if (a == 13 || b == 13)
		throw Failure("compare", 13);
	return a - b;
}

/* Through frames of libc (qsort, bsearch), which were not written with exceptions in mind. */
void callbacks()
{
	int values[] = {9, 4, 13, 7, 1}, wanted = 13;

	try {
		std::qsort(values, 5, sizeof *values, throwing_compare);
		ukl_fail("qsort came back");
	} catch (const Failure &failure) {
		CHECK_EQ(failure.code, 13);
	}
	std::sort(values, values + 5);
	try {
		(void)std::bsearch(&wanted, values, 5, sizeof *values, throwing_compare);
		ukl_fail("bsearch came back");
	} catch (const Failure &failure) {
		CHECK_EQ(failure.code, 13);
	}
	std::cout << "through qsort and bsearch: caught\n";
}

void thread_exceptions()
{
	std::vector<std::thread> threads;
	std::atomic<int> caught{0};
	std::exception_ptr carried;
	std::mutex mutex;

	for (int i = 0; i < 8; i++)
		threads.emplace_back([&, i] {
			ukl_check_mode();
			for (int round = 0; round < 200; round++) {
				try {
					dive(round % 20, i * 3);
				} catch (const Failure &failure) {
					caught += failure.code == i * 3;
				}
				CHECK_EQ(Guard::live, 0);
			}
			std::lock_guard<std::mutex> hold(mutex);
			if (i == 5) {
				try {
					throw Failure("carried", 55);
				} catch (...) {
					carried = std::current_exception();
				}
			}
		});
	for (auto &thread : threads)
		thread.join();
	CHECK_EQ(caught, 1600);
	try {
		std::rethrow_exception(carried);
	} catch (const Failure &failure) {
		CHECK_EQ(failure.code, 55);
	}
	std::cout << "8 threads threw at once: " << caught << " caught\n";

	auto good = std::async(std::launch::async, [] { return 42; });
	auto bad = std::async(std::launch::async, []() -> int { throw Failure("future", 1); });
	CHECK_EQ(good.get(), 42);
	try {
		(void)bad.get();
		ukl_fail("the future holds no exception");
	} catch (const Failure &failure) {
		std::cout << "from a future: " << failure.what() << '\n';
	}
}

void concurrency()
{
	std::mutex mutex;
	std::condition_variable condition;
	std::once_flag flag;
	std::promise<std::string> promise;
	auto future = promise.get_future();
	int turn = 0, initialised = 0;
	std::vector<std::thread> threads;

	for (int self = 0; self < 4; self++)
		threads.emplace_back([&, self] {
			std::call_once(flag, [&] { initialised++; });
			for (int i = 0; i < 200; i++) {
				std::unique_lock<std::mutex> hold(mutex);

				condition.wait(hold, [&] { return turn % 4 == self; });
				turn++;
				condition.notify_all();
			}
		});
	std::thread last([&] { promise.set_value("promised"); });
	for (auto &thread : threads)
		thread.join();
	last.join();
	CHECK_EQ(turn, 800);
	CHECK_EQ(initialised, 1);
	std::cout << turn << " turns, " << future.get() << '\n';

	/* Local statics are initialised once, whoever comes first. */
	std::atomic<int> built{0};
	threads.clear();
	for (int i = 0; i < 8; i++)
		threads.emplace_back([&] {
			static int value = ++built;

			CHECK_EQ(value, 1);
		});
	for (auto &thread : threads)
		thread.join();
	CHECK_EQ(built, 1);
}

struct Shape {
	virtual ~Shape() = default;
	virtual int sides() const = 0;
};

struct Square : Shape {
	int sides() const override
	{
		return 4;
	}
};

struct Named {
	virtual ~Named() = default;
	virtual const char *name() const
	{
		return "named";
	}
};

struct Triangle final : Named, virtual Shape {
	int sides() const override
	{
		return 3;
	}
};

void run_time_types()
{
	std::vector<std::unique_ptr<Shape>> shapes;
	int cast = 0;

	shapes.push_back(std::make_unique<Square>());
	shapes.push_back(std::make_unique<Triangle>());
	for (const auto &shape : shapes) {
		const Shape &reference = *shape;

		/* A cross cast, from one base to another. */
		if (const auto *named = dynamic_cast<const Named *>(shape.get()))
			cast += std::string(named->name()) == "named";
		std::cout << shape->sides() << (typeid(reference) == typeid(Square) ? " square" : " other") << '\n';
	}
	CHECK_EQ(cast, 1);
}

void streams()
{
	std::ostringstream out;
	std::istringstream in("17 3.5 word 0xff");
	std::string word;
	char path[256];
	int integer = 0, hex = 0;
	double real = 0;

	out << std::setw(8) << std::setfill('.') << 42 << std::hex << ' ' << 255 << ' ' << std::fixed << std::setprecision(3) << 2.0 / 3
	    << std::boolalpha << ' ' << true;
	std::cout << out.str() << '\n';
	in >> integer >> real >> word >> std::hex >> hex;
	CHECK(integer == 17 && real == 3.5 && word == "word" && hex == 255);
	in.clear();
	in.exceptions(std::ios::failbit);
	try {
		in >> integer;
		ukl_fail("no failure at the end of the stream");
	} catch (const std::ios_base::failure &) {
		std::cout << "ios_base::failure\n";
	}

	std::ofstream file(ukl_tmp(path, "cxx"));
	for (int i = 0; i < 10000; i++)
		file << i << '\n';
	file.close();
	CHECK(file.good());
	std::ifstream back(path);
	long sum = 0;
	int lines = 0;
	for (std::string line; std::getline(back, line); lines++)
		sum += std::stol(line);
	SYS(unlink(path));
	std::cout << lines << " lines, sum " << sum << std::endl;
}

void containers()
{
	const std::string text = "The rain in Spain stays mainly in the plain, 2024-11-05 and 2025-01-01.";
	const std::regex date("(\\d{4})-(\\d{2})-(\\d{2})"), word("\\b[a-z]*ain\\b", std::regex::icase);
	std::unordered_map<std::string, int> count;
	std::vector<std::string> keys;
	std::string dates;

	for (std::sregex_iterator match(text.begin(), text.end(), word), end; match != end; ++match)
		count[match->str()]++;
	for (std::sregex_iterator match(text.begin(), text.end(), date), end; match != end; ++match)
		dates += (*match)[3].str() + '.' + (*match)[2].str() + '.' + (*match)[1].str() + ' ';
	for (const auto &entry : count)
		keys.push_back(entry.first);
	std::sort(keys.begin(), keys.end());
	for (const auto &key : keys)
		std::cout << key << ' ';
	std::cout << dates << std::regex_replace(std::string("a-b-c"), std::regex("-"), "+") << '\n';
	try {
		std::regex broken("(");
		ukl_fail("a broken expression compiled");
	} catch (const std::regex_error &) {
		std::cout << "regex_error\n";
	}

	std::map<int, std::shared_ptr<std::string>> big;
	for (int i = 0; i < 20000; i++)
		big[(i * 7919) % 20011] = std::make_shared<std::string>(std::to_string(i));
	CHECK_EQ(big.size(), 20000);
	std::size_t length = 0;
	for (const auto &entry : big)
		length += entry.second->size();
	std::cout << "map: " << length << " characters\n";
}

/* What nobody catches ends in terminate, and the process by SIGABRT; terminate handlers run. */
void uncaught()
{
	pid_t child = static_cast<pid_t>(SYS(fork()));

	if (child == 0) {
		CHECK(freopen("/dev/null", "w", stderr) != nullptr);
		throw Failure("nobody catches this", 1);
	}
	ukl_wait_signal(child, SIGABRT);
	child = static_cast<pid_t>(SYS(fork()));
	if (child == 0) {
		std::set_terminate([] { _exit(44); });
		[]() noexcept { dive(1, 1); }();
	}
	ukl_wait_exit(child, 44);
	std::cout << "uncaught: SIGABRT; noexcept: terminate" << std::endl;
}

} // namespace

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	ukl_begin("cxx");
	std::cout << "constructors: " << trace << by_function << std::endl;
	exceptions();
	library_exceptions();
	callbacks();
	thread_exceptions();
	concurrency();
	run_time_types();
	streams();
	containers();
	uncaught();
	std::cout.flush();
	return ukl_end();
}
